"""Batches taken apart into single samples, for gradients of each.

Tensors and arrays hold an entry for every sample, and so do lists as long as there are samples; all samples share the rest: words, numbers,
tensors without a dimension. Where all that is per sample is tensors, samples can be worked on together (`torch.func.vmap`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.errors import NeedsTask

__all__ = ["Singles", "singles_of"]


@final
@dataclass(frozen=True, eq=False)
class Singles:
    """A batch whose samples can be taken one by one.

    Args:
        count: of samples.
        parts: what has an entry for every sample.
        joined: makes a batch from as many parts.
    """

    count: int
    parts: tuple[Any, ...]
    joined: Callable[[Sequence[Any]], Any]

    @property
    def are_tensors(self) -> bool:
        """Whether samples can be worked on together."""
        return all(isinstance(part, Tensor) for part in self.parts)

    def one(self, index: int) -> Any:
        """A batch of one sample."""
        return self.joined([part[index : index + 1] for part in self.parts])


def singles_of(batch: Any, who: str) -> Singles:
    """Look at what a batch holds.

    Raises:
        NeedsTask: it is not clear how many samples it has, because its tensors do not agree or there is none.

    >>> import torch
    >>> singles_of({"x": torch.arange(6).view(3, 2), "names": ["a", "b", "c"], "task": "digits"}, "a doctest").one(1)
    {'x': tensor([[2, 3]]), 'names': ['b'], 'task': 'digits'}
    """
    leaves, rebuild = tree_flatten(batch, is_leaf=_is_list_of_values)
    sizes = [leaf.shape[0] for leaf in leaves if _has_entries(leaf)]
    if not sizes or len(set(sizes)) > 1:
        found = f"tensors of {' and '.join(map(str, dict.fromkeys(sizes)))} entries" if sizes else "no tensor"
        raise NeedsTask(
            f"{who} takes the gradient of every sample by itself, so every tensor of a batch has an entry for each; this batch holds {found}: "
            "keep what all samples share in the loss, not in the batch"
        )
    own = [_has_entries(leaf) or (_is_list_of_values(leaf) and len(leaf) == sizes[0]) for leaf in leaves]

    def joined(parts: Sequence[Any]) -> Any:
        left = iter(parts)
        return tree_unflatten([next(left) if mine else leaf for leaf, mine in zip(leaves, own, strict=True)], rebuild)

    return Singles(sizes[0], tuple(leaf for leaf, mine in zip(leaves, own, strict=True) if mine), joined)


def _has_entries(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | np.ndarray) and leaf.ndim > 0


def _is_list_of_values(node: Any) -> bool:
    """Such as the names or numbers of the samples; a tuple of numbers is rather a size."""
    kinds = str | int | float if type(node) is list else str
    return type(node) in (list, tuple) and len(node) > 0 and all(isinstance(entry, kinds) for entry in node)
