"""One ranking of all units by what they are worth for what they cost: the greedy answer to the knapsack of a budget.

    remove, again and again, the unit with the smallest  score / saving

A unit's saving depends on the widths around it (a channel is cheaper where its readers are narrow), so it is worked out anew in
rounds on the way down. For a linear cost and units of one size the result is optimal up to the last unit (the fractional knapsack).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from secateur.filling import Room
from secateur.pricing import Pricing
from secateur.units import Units

__all__ = ["PerCost"]

_ROUNDS = 24


@final
@dataclass(frozen=True, kw_only=True)
class PerCost:
    """Remove units by score per saving until the limit is met, then fill up.

    Args:
        pricing: what given counts cost.
        limit: what they may cost.
        steps: units that come and go together, by name, where widths are rounded; 1 where a name is missing.
        min_kept: units that stay in every group at least; below 1 a fraction of them.
    """

    pricing: Pricing
    limit: float
    steps: tuple[tuple[str, int], ...] = field(default=())
    min_kept: float = 1

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name.

        Raises:
            OverBudget: even the smallest widths cost more.
        """
        room = Room(units, self.pricing, self.limit, dict(self.steps), self.min_kept)
        ladder, counts = _Ladder(units, room.floors, room.steps), dict(room.full)
        start = self.pricing(counts)
        for k in range(1, _ROUNDS + 1):
            counts = self._remove(ladder, counts, start + (self.limit - start) * k / _ROUNDS)
        while not room.fits(counts):  # what is left of the last round's linear guess
            counts = self._remove(ladder, counts, self.limit)
        return room.closest(counts)

    def _remove(self, ladder: "_Ladder", counts: dict[str, int], aim: float) -> dict[str, int]:
        spare = self.pricing(counts) - aim
        if spare <= 0:
            return counts
        return ladder.down(counts, self.pricing.savings(counts), spare)


class _Ladder:
    """Every group's units as steps from the full width down, worst units first."""

    def __init__(self, units: Units, floors: Mapping[str, int], steps: Mapping[str, int]) -> None:
        self.names = list(units)
        self.after: list[list[int]] = []  # widths after each step, by group
        self.worth: list[Tensor] = []  # the summed score of what each step removes
        for name in self.names:
            scores = units[name].reshape(-1).double().sort(descending=True).values
            sums = torch.cat([scores.new_zeros(1), scores.cumsum(0)])
            widths = _widths(units.count(name), floors[name], steps.get(name, 1))
            edges = torch.tensor([units.count(name), *widths])
            self.after.append(widths)
            self.worth.append(sums[edges[:-1]] - sums[edges[1:]])

    def down(self, counts: dict[str, int], savings: Mapping[str, float], spare: float) -> dict[str, int]:
        """Take steps, cheapest first, until about ``spare`` is saved; at least one, where there is one."""
        ratios, gains, owners = [], [], []
        for k, name in enumerate(self.names):
            first = sum(width >= counts[name] for width in self.after[k])
            widths = [counts[name], *self.after[k][first:]]
            gone = torch.tensor(widths[:-1]) - torch.tensor(widths[1:])
            gain = gone * max(savings[name], 1e-300)
            ratio = (self.worth[k][first:] / gain).cummax(0).values if len(gain) else gain
            ratios.append(ratio)
            gains.append(gain)
            owners.append(torch.full((len(gain),), k))
        order = torch.cat(ratios).argsort(stable=True)
        saved = torch.cat(gains)[order].cumsum(0)
        taken = int((saved < spare).sum()) + 1
        per_group = torch.bincount(torch.cat(owners)[order[:taken]], minlength=len(self.names)).tolist()
        result = dict(counts)
        for k, (name, number) in enumerate(zip(self.names, per_group, strict=True)):
            first = sum(width >= counts[name] for width in self.after[k])
            result[name] = self.after[k][first + number - 1] if number else counts[name]
        return result


def _widths(total: int, floor: int, step: int) -> list[int]:
    """The widths below ``total``, multiples of ``step``, down to ``floor``."""
    top = step * ((total - 1) // step)
    return [width for width in range(top, floor - 1, -step) if width >= floor] if total > floor else []
