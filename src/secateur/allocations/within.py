"""A budget met by any allocation: the least that has to leave, then filled up to the last unit that fits.

    smallest sparsity with  price(counts) <= limit,   then units come back, best score per price first, while they fit

So the budget is never exceeded, and one more unit (one more step, where widths are rounded) would exceed it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

from secateur.filling import Room
from secateur.pricing import Pricing
from secateur.protocols import Allocation
from secateur.units import Units

__all__ = ["Within"]

_HALVINGS = 40


@final
@dataclass(frozen=True, kw_only=True)
class Within:
    """Follow ``family(sparsity)`` at the smallest sparsity that meets the limit.

    Args:
        pricing: what given counts cost.
        limit: what they may cost.
        family: from a sparsity to an allocation, such as `Uniform`; called with ``sparsity=``.
        steps: units that come and go together, by name, where widths are rounded; 1 where a name is missing.
        min_kept: units that stay in every group at least; below 1 a fraction of them.
    """

    pricing: Pricing
    limit: float
    family: Callable[..., Allocation]
    steps: tuple[tuple[str, int], ...] = field(default=())
    min_kept: float = 1

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name.

        Raises:
            OverBudget: even the smallest widths cost more.
        """
        room = Room(units, self.pricing, self.limit, dict(self.steps), self.min_kept)
        met, low, high = dict(room.floors), 0.0, 1.0
        if room.fits(room.full):
            return room.full
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            counts = self._rounded(room, self.family(sparsity=middle)(units))
            if room.fits(counts):
                high, met = middle, counts
            else:
                low = middle
        return room.closest(met)

    def _rounded(self, room: Room, counts: Mapping[str, int]) -> dict[str, int]:
        return {
            name: max(room.floors[name], _down(count, room.full[name], room.steps.get(name, 1)))
            for name, count in counts.items()
        }


def _down(count: int, total: int, step: int) -> int:
    return total if count >= total else step * (count // step)
