"""LAMP: a layer-adaptive score makes layers comparable before one global ranking.

    lamp(u) = score(u)^2 / sum over v with score(v) >= score(u) of score(v)^2        (within one layer)

Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", eq. 1. The largest unit of every layer scores 1, so
no layer is ever emptied before all others are down to one unit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from secateur.counting import check_sparsity, kept_of
from secateur.ranking.selection import counts_with_floors
from secateur.units import Table, Units

__all__ = ["Lamp"]

_LARGEST = 1e140  # stands for infinity: above every float32, and a billion of its squares still add up


@final
@dataclass(frozen=True, kw_only=True)
class Lamp:
    """Remove ``sparsity`` of all units in total, ranked by LAMP scores; keep at least ``min_kept`` per layer."""

    sparsity: float
    min_kept: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name; the total is exact.

        Raises:
            BadSparsity: ``min_kept`` alone asks for more than may stay.
        """
        adapted = Units({name: Table.of(lamp_scores(units[name].reshape(-1))) for name in units})
        return counts_with_floors(adapted, kept_of(self.sparsity, units.total), self.min_kept)


def lamp_scores(scores: Tensor) -> Tensor:
    """LAMP scores of one layer, ``[unit]``, in float64; of equal scores the earlier one counts as the larger.

    >>> lamp_scores(torch.tensor([1.0, 2.0]))
    tensor([0.2000, 1.0000], dtype=torch.float64)
    """
    order = scores.argsort(descending=True, stable=True)
    squares = scores[order].double().clamp(0, _LARGEST).square()  # what scores below zero ranks last
    lamp = torch.empty_like(squares)
    lamp[order] = squares / squares.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return lamp
