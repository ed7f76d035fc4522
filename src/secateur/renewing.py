"""Arguments that are handed in again and again: what a run may write into is as new every time.

Blocks of language models write keys and values into a cache that they are given, and read what lies there already. Run once more on the
same cache, a block would look at its own past, and a gradient would go back through it.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["opaque", "renewed"]

T = TypeVar("T")
_LASTING = (Tensor, nn.Module, str, bytes, int, float, complex, type, torch.dtype, torch.device, type(None))
_UNCOPIED = (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, copy.Error)


def opaque(value: Any) -> bool:
    """Whether a value is taken as one, even if torch has been taught to look inside: a cache is the same, however full."""
    return type(value) not in (tuple, list, dict)


def renewed(given: T, model: nn.Module) -> T:
    """The same tensors, numbers and modules, in containers of their own; other objects, such as caches, are copies.

    What cannot be copied is handed on as it is.

    Args:
        given: as it was first handed in; it stays as it is.
        model: its modules, parameters and buffers are never copied, wherever they are held.

    >>> tensor, seen = torch.zeros(2), []
    >>> again = renewed({"x": tensor, "cache": seen}, nn.Identity())
    >>> again["x"] is tensor, again["cache"] is seen
    (True, False)
    """
    memo: dict[int, Any] = {}

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, _LASTING):
            return leaf
        if not memo:
            memo.update((id(own), own) for own in (*model.modules(), *model.parameters(), *model.buffers()))
        try:
            return copy.deepcopy(leaf, memo)
        except _UNCOPIED:
            return leaf

    found: T = tree_map(copied, given, is_leaf=opaque)
    return found
