"""Widths at the edge of a budget: the smallest there can be, and what still fits in."""

import math
from collections.abc import Mapping

from secateur.errors import OverBudget
from secateur.pricing import Pricing
from secateur.units import Units

__all__ = ["affordable", "filled", "floors_of"]


def floors_of(units: Units, steps: Mapping[str, int], min_kept: int) -> dict[str, int]:
    """The smallest widths there can be: ``min_kept``, at least one, rounded up to whole steps."""
    return {name: min(units.count(name), _up(max(1, min_kept), steps.get(name, 1))) for name in units}


def affordable(floors: Mapping[str, int], pricing: Pricing, limit: float) -> None:
    """Refuse a limit that not even the smallest widths keep.

    Raises:
        OverBudget: they cost more than ``limit``.
    """
    least = pricing(floors)
    if least > limit * (1 + 1e-12):
        raise OverBudget(
            f"the smallest widths that are allowed still cost {least:.4g}, more than the budget of {limit:.4g} ({pricing({}):.4g} is "
            "what all channels cost); raise the budget, or let more leave (ignore=, min_kept=, round_to=)"
        )


def filled(
    units: Units, counts: Mapping[str, int], pricing: Pricing, limit: float, steps: Mapping[str, int]
) -> dict[str, int]:
    """Bring units back while they fit, those first that are worth most for what they cost."""
    counts = dict(counts)
    sorted_scores = {name: units[name].reshape(-1).double().sort(descending=True).values for name in units}
    open_names = {name for name in counts if counts[name] < units.count(name)}
    while open_names:
        prices = pricing.savings(counts)
        spare = limit - pricing(counts)
        offers = []
        for name in open_names:
            more = min(steps.get(name, 1), units.count(name) - counts[name])
            worth = float(sorted_scores[name][counts[name] : counts[name] + more].sum())
            offers.append((worth / max(prices[name] * more, 1e-300), name, more))
        best = None
        for _, name, more in sorted(offers, reverse=True):
            if prices[name] * more > spare * 1.5 or pricing(counts | {name: counts[name] + more}) > limit:
                open_names.discard(name)  # what does not fit now will not fit later
                continue
            best = name, more
            break
        if best is None:
            return counts
        counts[best[0]] += best[1]
        if counts[best[0]] >= units.count(best[0]):
            open_names.discard(best[0])
    return counts


def _up(count: int, step: int) -> int:
    return step * math.ceil(count / step)
