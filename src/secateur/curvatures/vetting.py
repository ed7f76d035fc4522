"""Vetting: data that cannot say which weights matter are refused by name, before or while they are used."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.errors import BadCalibration

__all__ = ["refuse_constant", "vetted"]


def vetted(batches: Iterable[Any], *, whole: bool = True) -> Iterator[Any]:
    """Batches as they come; what is after the last of them runs only if they can say something.

    Args:
        batches: of which the inputs are looked at.
        whole: whether samples are judged as wholes, so that one of them again and again says nothing, whatever it holds.

    Raises:
        BadCalibration: a batch is empty or holds NaN or infinite numbers, all numbers of all batches are the same, or all samples are.

    >>> list(vetted([torch.ones(2, 3), torch.ones(2, 3)]))
    Traceback (most recent call last):
    secateur.errors.BadCalibration: every number of the 2 calibration batches is 1: constant data say nothing about which weights matter; pass real inputs in Task(batches=...)
    """
    seen, ends, samples = 0, set[float](), _Samples()
    for batch in batches:
        seen += 1
        numbers = list(_numbers(batch))
        for leaf in numbers:
            if leaf.dim() and not len(leaf):
                raise BadCalibration(
                    f"calibration batch {seen - 1} holds a tensor of shape {list(leaf.shape)}, no sample at all: leave that batch out"
                )
            if not leaf.numel():  # such as a cache that holds nothing yet
                continue
            if not bool(torch.isfinite(leaf).all()):
                bad = int((~torch.isfinite(leaf)).sum())
                raise BadCalibration(
                    f"calibration batch {seen - 1} holds {bad:,} NaN or infinite numbers of {leaf.numel():,}: every Hessian would be NaN; clean the data"
                )
            if len(ends) < 2:
                ends |= {float(leaf.min()), float(leaf.max())}
        if whole:
            samples.look(numbers)
        yield batch
    what = f"every number of the {seen} calibration batches is {ends.pop():g}" if len(ends) == 1 else ""
    if not what and samples.are_one:
        what = f"all {samples.count} samples of the {seen} calibration batches are the same"
    if what:
        raise BadCalibration(
            f"{what}: constant data say nothing about which weights matter; pass real inputs in Task(batches=...)"
        )


class _Samples:
    """Whether all samples are the first one again; a single one may be enough, and come in several batches."""

    def __init__(self) -> None:
        self.count, self._first, self._several, self._varied = 0, list[Tensor](), False, False

    @property
    def are_one(self) -> bool:
        return self._several and not self._varied

    def look(self, numbers: list[Tensor]) -> None:
        """At the inputs of a batch, until two samples differ."""
        own = [leaf for leaf in numbers if leaf.dim()]
        if self._varied or not own:
            return
        self.count += len(own[0])
        self._several |= len(own[0]) > 1
        self._first = self._first or [leaf[:1].clone() for leaf in own]
        self._varied = len(own) != len(self._first) or not all(map(_all_like, own, self._first))


def _all_like(leaf: Tensor, first: Tensor) -> bool:
    return leaf.shape[1:] == first.shape[1:] and bool((leaf == first.to(leaf.device)).all())


def refuse_constant(batches: Iterable[Any]) -> None:
    """Go through all of them now; see `vetted`. Layers look at the parts of a sample too, and say themselves where those are all the same."""
    for _ in vetted(batches, whole=False):
        pass


def _numbers(batch: Any) -> Iterator[Tensor]:
    """Of the inputs, which come first."""
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    for leaf in tree_leaves(first):
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "iuf":
            yield torch.as_tensor(leaf)
        if isinstance(leaf, Tensor) and leaf.dtype != torch.bool and not leaf.is_complex():
            yield leaf
