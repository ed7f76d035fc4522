"""Widths at the edge of a budget: the smallest there can be, and what still fits in."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from secateur.errors import OverBudget
from secateur.pricing import Pricing
from secateur.units import Units

__all__ = ["Room", "floors_of"]

Counts = Mapping[str, int]
_NEAR = 0.99  # of the limit; nearer is not worth giving up better units for
_NOTHING = 1e-6
_SWAPS = 8
_GROUPS = 40  # tried on either side; networks with more groups have cheap units among them


def floors_of(units: Units, steps: Mapping[str, int], min_kept: float) -> dict[str, int]:
    """The smallest widths there can be: ``min_kept`` units, below 1 a fraction of them, at least one, rounded up to whole steps."""
    least = {name: max(1, math.ceil(min_kept * (units.count(name) if min_kept < 1 else 1))) for name in units}
    return {name: min(units.count(name), _up(least[name], steps.get(name, 1))) for name in units}


@dataclass(frozen=True, eq=False)
class Room:
    """Units that compete for a budget.

    Args:
        units: their scores.
        pricing: what given counts cost.
        limit: what they may cost.
        steps: units that come and go together, by name; 1 where a name is missing.
        min_kept: units that stay in every group at least; below 1 a fraction of them.
    """

    units: Units
    pricing: Pricing
    limit: float
    steps: Mapping[str, int]
    min_kept: float = 1

    @cached_property
    def floors(self) -> dict[str, int]:
        """The smallest widths there can be.

        Raises:
            OverBudget: they cost more than the limit.
        """
        floors = floors_of(self.units, self.steps, self.min_kept)
        least = self.pricing(floors)
        if least > self.limit * (1 + 1e-12):
            raise OverBudget(
                f"the smallest widths that are allowed still cost {least:.4g}, more than the budget of {self.limit:.4g} "
                f"({self.pricing({}):.4g} is what all channels cost); raise the budget, or let more leave (ignore=, min_kept=, "
                "round_to=)"
            )
        return floors

    @cached_property
    def full(self) -> dict[str, int]:
        """All there is."""
        return {name: self.units.count(name) for name in self.units}

    def fits(self, counts: Counts) -> bool:
        """Whether these widths keep the limit."""
        return self.pricing(counts) <= self.limit

    def filled(self, counts: Counts) -> dict[str, int]:
        """Bring units back while they fit, those first that are worth most for what they cost."""
        counts, closed = dict(counts), set[str]()
        while True:
            prices = self.pricing.savings(counts)
            offers = [
                (self._worth(n, counts, prices[n]), n) for n in self.full if self._more(n, counts) and n not in closed
            ]
            for _, name in sorted(offers, reverse=True):
                wider = {**counts, name: counts[name] + self._more(name, counts)}
                if self.fits(wider):
                    counts = wider
                    break
                closed.add(name)  # what does not fit now will not fit later
            else:
                return counts

    def closest(self, counts: Counts) -> dict[str, int]:
        """`filled`, and where units are too dear to come near the limit, cheap ones are given up for a dear one that does."""
        best = self.filled(counts)
        for _ in range(_SWAPS):
            if self.pricing(best) >= self.limit * _NEAR:
                break
            nearest = max(self._swaps(best), key=self.pricing, default=best)
            if self.pricing(nearest) <= self.pricing(best):
                break
            best = self.filled(nearest)
        return best

    def _swaps(self, counts: Counts) -> Iterator[dict[str, int]]:
        """One step more of one group for as few as possible of another, within the limit."""
        prices = self.pricing.savings(counts)
        for gains in [name for name in self.full if self._more(name, counts)][:_GROUPS]:
            wider = {**counts, gains: counts[gains] + self._more(gains, counts)}
            over = max(self.pricing(wider) - self.limit, 0.0)
            for gives in [name for name in self.full if name != gains and counts[name] > self.floors[name]][:_GROUPS]:
                step, fewer = self.steps.get(gives, 1), max(1, math.ceil(over / max(prices[gives], 1e-300)))
                swapped = {**wider, gives: step * ((counts[gives] - fewer) // step)}
                if swapped[gives] >= self.floors[gives] and self.fits(swapped) and self._pays(counts, swapped):
                    yield swapped

    def _pays(self, counts: Counts, swapped: Counts) -> bool:
        """Whether what comes is worth anything beside what goes: likes of units that are there are not."""
        change = {name: swapped[name] - counts[name] for name in counts if swapped[name] != counts[name]}
        parts = {
            name: float(self._ranked(name)[min(counts[name], swapped[name]) : max(counts[name], swapped[name])].sum())
            for name in change
        }
        comes = sum(part for name, part in parts.items() if change[name] > 0)
        return comes >= _NOTHING * sum(part for name, part in parts.items() if change[name] < 0)

    def _more(self, name: str, counts: Counts) -> int:
        """How many units the next step up of a group has; 0 if all are there."""
        return min(self.steps.get(name, 1), self.full[name] - counts[name])

    def _worth(self, name: str, counts: Counts, price: float) -> float:
        more = self._more(name, counts)
        return float(self._ranked(name)[counts[name] : counts[name] + more].sum()) / max(price * more, 1e-300)

    def _ranked(self, name: str) -> Tensor:
        if name not in self._sorted:
            self._sorted[name] = self.units[name].reshape(-1).double().sort(descending=True).values
        return self._sorted[name]

    @cached_property
    def _sorted(self) -> dict[str, Tensor]:
        return {}


def _up(count: int, step: int) -> int:
    return step * math.ceil(count / step)
