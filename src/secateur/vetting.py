"""Vetting: data that cannot say which weights matter are refused by name, before or while they are used."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.errors import BadCalibration

__all__ = ["refuse_constant", "vetted"]


def vetted(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches as they come; what is after the last of them runs only if they can say something.

    Raises:
        BadCalibration: a batch is empty or holds NaN or infinite numbers, or all numbers of all batches are the same.

    >>> list(vetted([torch.ones(2, 3), torch.ones(2, 3)]))
    Traceback (most recent call last):
    secateur.errors.BadCalibration: every number of the 2 calibration batches is 1: constant data say nothing about which weights matter; pass real inputs in Task(batches=...)
    """
    seen, ends = 0, set[float]()
    for batch in batches:
        seen += 1
        for leaf in _numbers(batch):
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
        yield batch
    if len(ends) == 1:
        raise BadCalibration(
            f"every number of the {seen} calibration batches is {ends.pop():g}: constant data say nothing about which weights matter; "
            "pass real inputs in Task(batches=...)"
        )


def refuse_constant(batches: Iterable[Any]) -> None:
    """Go through all of them now; see `vetted`."""
    for _ in vetted(batches):
        pass


def _numbers(batch: Any) -> Iterator[Tensor]:
    """Of the inputs, which come first."""
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    for leaf in tree_leaves(first):
        if isinstance(leaf, Tensor) and leaf.dtype != torch.bool and not leaf.is_complex():
            yield leaf
