"""A budget met by single weights (or blocks, rows, ...): the most score for what may be spent.

    max sum of score^power over what stays   subject to   fixed + sum over names of cost(weights that stay) <= limit

With magnitude and power 2 that is the Euclidean projection onto the budget (Yang et al. 2019, ICLR, eq. 9); see `secateur.solvers.cheapest`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import final

import torch
from torch import Tensor

from secateur.errors import OverBudget
from secateur.solvers.cheapest import keep_best
from secateur.units import Units

__all__ = ["Priced"]


@final
@dataclass(frozen=True, kw_only=True)
class Priced:
    """Keep the best units that a limit pays for; names without a price cost nothing and stay whole.

    Args:
        prices: by name, pairs ``(how many weights, what each costs)``, the cheap ones first.
        limit: what may be spent.
        fixed: what is spent whatever stays.
        power: of the score, to make a value of it that adds up: 2 for magnitudes, 1 for what is a loss already.
        relative: values relative to what is kept beside them, f_k / (f_1 + ... + f_k) from the largest f down (LAMP, Lee et al. 2021), for
            scores that do not compare between layers.
        exact: the best choice, not the greedy one.
        min_kept: units that stay under every name at least; below 1 a fraction of them.
    """

    prices: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    limit: float
    fixed: float = 0.0
    power: float = 2.0
    relative: bool = False
    exact: bool = False
    min_kept: float = 0

    @property
    def name(self) -> str:
        """What receipts call it."""
        return "the best within a budget"

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name.

        Raises:
            OverBudget: what has to stay costs more.
        """
        prices = {name: steps for name, steps in self.prices if name in units}
        values = {
            n: units[n].flatten().double().clamp(min=0).pow(self.power).sort(descending=True).values for n in prices
        }
        if self.relative:
            values = {n: v / v.cumsum(0).clamp_min(1e-300) for n, v in values.items()}
        costs = {n: _each(prices[n], units.count(n), units.tables[n].weights) for n in prices}
        floors = {n: self._floor(units.count(n)) for n in prices}
        room = self.limit - self.fixed - sum(float(costs[n][: floors[n]].sum()) for n in prices)
        if room < 0:
            raise OverBudget(
                f"the budget is {self.limit:.4g}, but {self.limit - room:.4g} is spent on what has to stay (inputs and outputs of the layers, and "
                f"min_kept={self.min_kept}); raise the budget, or take whole channels out: granularity='channel'"
            )
        left_values, left_costs = ([v[floors[n] :] for n, v in found.items()] for found in (values, costs))
        chosen = keep_best(left_values, left_costs, room, exact=self.exact) if prices else None
        counts = {name: units.count(name) for name in units}
        return counts | ({n: floors[n] + k for n, k in zip(prices, chosen.counts, strict=True)} if chosen else {})

    def _floor(self, count: int) -> int:
        return min(count, int(self.min_kept)) if self.min_kept >= 1 else ceil(self.min_kept * count)


def _each(steps: tuple[tuple[float, float], ...], count: int, weights: float) -> Tensor:
    """What the first, second, ... unit costs, ``[count]``."""
    ends = [0.0]
    for many, _ in steps:
        ends.append(ends[-1] + many)
    starts = torch.arange(count, dtype=torch.float64) * weights
    total = torch.zeros(count, dtype=torch.float64)
    for (_, each), low, high in zip(steps, ends, ends[1:], strict=False):
        inside = (starts + weights).clamp(max=high) - starts.clamp(min=low)
        total += each * inside.clamp(min=0)
    return total
