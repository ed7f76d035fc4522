"""Damping chosen by data that the fit did not see.

With few samples beside a layer's inputs, survivors learn the samples by heart: the error on them falls, that on others rises. So a
layer's damping is the one whose fit on one half of the batches does best on the other half, both ways round:

    min over d   rise_B( fit(H_A + d) ) + rise_A( fit(H_B + d) )

on some of its rows, with a stand-in for the mask (|w| * rms of the input, row by row, as many as will stay).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from secateur.layerwise.moments import Moments
from secateur.quadratic import rows_of_rise
from secateur.solvers.support import refits_on_support

__all__ = ["HELD_OUT", "damping_of", "held_out_damping"]

HELD_OUT = "held_out"
_TRIED = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_ROWS = 16
_ONE_HALF = 0.01  # for a layer that ran on one half of the batches only, such as an expert


def damping_of(asked: float | str, rows: Tensor, found: Moments, share: Callable[[], float], *, centred: bool) -> float:
    """As ``asked``, or as the other half of the batches says, where ``share()`` of the layer stays."""
    if not isinstance(asked, str):
        return asked
    if found.odd is None or found.odd.samples == found.samples:
        return _ONE_HALF
    return held_out_damping(rows, [found.halves(g, centred=centred) for g in range(len(rows))], share())


def held_out_damping(rows: Tensor, halves: Sequence[tuple[Tensor, Tensor]], share: float) -> float:
    """The fraction of the mean diagonal to add.

    Args:
        rows: the dense weights, ``[groups, rows, features]``.
        halves: for each group the Hessians ``[features, features]`` of the two halves of the batches.
        share: how much of the rows stays.

    >>> same = torch.eye(4)
    >>> held_out_damping(torch.randn(1, 3, 4), [(same, same)], 0.5)  # nothing to learn by heart
    0.003
    """
    keep = max(1, round(share * rows.shape[2]))
    chosen = torch.linspace(0, rows.shape[1] - 1, min(_ROWS, rows.shape[1])).round().long()
    errors = torch.zeros(len(_TRIED), dtype=torch.float64)
    some_of_all = rows[:, chosen] if rows.element_size() >= 4 else rows[:, chosen].float()
    for some, pair in zip(some_of_all, halves, strict=True):
        scale = sum(h.diagonal() for h in pair).clamp_min(0).sqrt()  # type: ignore[union-attr]
        best = (some.abs() * scale.to(some.dtype)).topk(keep, dim=1).indices
        mask = torch.zeros_like(some, dtype=torch.bool).scatter_(1, best, value=True)
        for fitted_on, judged_on in (pair, pair[::-1]):
            matrix, mean = _whole(fitted_on.to(some.dtype))
            fits = refits_on_support(some, matrix, mask, [d * mean for d in _TRIED[::-1]], tolerance=1e-3)
            rises = [float(rows_of_rise((fit - some).double(), judged_on.double()).sum()) for fit in fits]
            errors += torch.tensor(rises[::-1], dtype=torch.float64).nan_to_num(nan=torch.inf)
    return _TRIED[int(errors.argmin())]


def _whole(hessian: Tensor) -> tuple[Tensor, float]:
    """With a one on the diagonal of features that never fire, and the mean of the diagonal of the others."""
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    matrix = hessian.clone()
    matrix.diagonal().masked_fill_(dead, 1)
    return matrix, float(diagonal[~dead].mean()) if not bool(dead.all()) else 1.0
