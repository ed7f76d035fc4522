"""How much of each layer stays, of least total error of layers, for what may be spent; see `secateur.budget_of_errors`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from secateur.budget_of_errors import Curve, Steps, cost_of, widths_of
from secateur.units import Units

__all__ = ["ByError"]


@final
@dataclass(frozen=True, kw_only=True)
class ByError:
    """Keep what makes the least error; names without a price or a curve stay whole.

    Args:
        curves: by name, ``(sparsity, error)`` points.
        prices: by name, pairs ``(how many weights, what each costs)``, the cheap ones first.
        limit: what may be spent.
        fixed: what is spent whatever stays.
        min_kept: units that stay under every name at least.
    """

    curves: tuple[tuple[str, Curve], ...]
    prices: tuple[tuple[str, Steps], ...]
    limit: float
    fixed: float = 0.0
    min_kept: int = 1

    @property
    def name(self) -> str:
        """What receipts call it."""
        return "of least error within a budget"

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name.

        Raises:
            OverBudget: it cannot be met.
        """
        curves, prices = dict(self.curves), dict(self.prices)
        names = [name for name in units if name in curves and name in prices]
        sizes = {name: units.count(name) for name in units}
        costs = {name: _cost(prices[name], units.tables[name].weights) for name in names}
        others = sum(
            cost_of(prices[name], sizes[name] * units.tables[name].weights)
            for name in units
            if name in prices and name not in costs
        )
        room = self.limit - self.fixed - others
        own = {name: sizes[name] for name in names}
        return sizes | widths_of(curves, own, costs, room, min_kept=max(1, self.min_kept))


def _cost(steps: Steps, weights: float) -> Callable[[int], float]:
    return lambda kept: cost_of(steps, kept * weights)
