"""How much of each layer leaves, found from the layers' errors by dynamic programming (as in SPDY; Frantar & Alistarh 2022).

    minimise   sum_l  error_l(kept_l)      subject to      sum_l cost_l(kept_l)  <=  budget

Every layer's error is measured at a few sparsities and interpolated in between, its logarithm linearly. The table over (layers, budget
in small steps) gives the optimum, also where curves are not convex.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from secateur.errors import OverBudget

__all__ = ["Curve", "Steps", "cheapest_levels", "cost_of", "widths_of"]

Curve = Sequence[tuple[float, float]]  # (sparsity, error)
Steps = Sequence[tuple[float, float]]  # (how many weights, what each costs), the cheap ones first
_LEVELS = 48


def cost_of(steps: Steps, kept: float) -> float:
    """What ``kept`` weights of one name cost.

    >>> cost_of([(10, 1.0), (float("inf"), 3.0)], 12)
    16.0
    """
    total, left = 0.0, float(kept)
    for many, each in steps:
        total, left = total + each * min(many, left), max(0.0, left - many)
    return total


def cheapest_levels(
    errors: Mapping[str, Sequence[float]], costs: Mapping[str, Sequence[float]], budget: float, *, bins: int = 8000
) -> dict[str, int]:
    """One level for each name, of least total error, with a total cost of at most ``budget``.

    Args:
        errors: of every level, by name.
        costs: likewise.
        budget: of the costs.
        bins: steps into which the budget is divided; costs are rounded up to them, so that the budget is kept.

    Raises:
        OverBudget: even the cheapest levels cost more.

    >>> cheapest_levels({"a": [0.0, 1.0], "b": [0.0, 5.0]}, {"a": [10, 5], "b": [10, 5]}, 16)
    {'a': 1, 'b': 0}
    """
    if budget <= bins and budget == int(budget) > 0:
        bins = int(bins // budget * budget)  # whole costs fit whole steps
    least = np.zeros(bins + 1)
    taken: list[tuple[str, NDArray[np.int64], list[int]]] = []
    size = budget / bins
    for name, own in errors.items():
        steps = [int(np.ceil(cost / size - 1e-9)) for cost in costs[name]]
        table = np.full((len(own), bins + 1), np.inf)
        for level, (error, step) in enumerate(zip(own, steps, strict=True)):
            if step <= bins:
                table[level, step:] = least[: bins + 1 - step] + error
        taken.append((name, table.argmin(0), steps))
        least = table.min(0)
    if not np.isfinite(least[bins]):
        cheapest = sum(min(own) for own in costs.values())
        raise OverBudget(
            f"the budget of {budget:,.6g} cannot be met: the smallest layers cost {cheapest:,.6g} together"
        )
    place, found = bins, {}
    for name, choice, steps in reversed(taken):
        found[name] = int(choice[place])
        place -= steps[found[name]]
    return {name: found[name] for name in errors}


def widths_of(
    curves: Mapping[str, Curve],
    units: Mapping[str, int],
    costs: Mapping[str, Callable[[int], float]],
    budget: float,
    *,
    min_kept: int = 0,
) -> dict[str, int]:
    """Units that stay by name, of least total error, at a total price of at most ``budget`` and as near to it as whole units go.

    Args:
        curves: ``(sparsity, error)`` points by name, at sparsities above 0; without any the error is 0.
        units: how many there are.
        costs: of so many units.
        budget: of the total.
        min_kept: units that stay at least.

    Raises:
        OverBudget: it cannot be met.
    """
    if not budget > 0 and units:
        cheapest = sum(costs[name](min(max(1, min_kept), count)) for name, count in units.items())
        raise OverBudget(f"nothing is left to spend on weights, and the smallest layers cost {cheapest:,.6g} together")
    levels = {name: _levels(curves[name], count, min_kept) for name, count in units.items()}
    errors = {name: [error for _, error in own] for name, own in levels.items()}
    asked = {name: [costs[name](kept) for kept, _ in own] for name, own in levels.items()}
    chosen = cheapest_levels(errors, asked, budget)
    counts = {name: levels[name][level][0] for name, level in chosen.items()}
    spare = budget - sum(costs[name](kept) for name, kept in counts.items())
    for name in sorted(counts, key=lambda n: -_gain(levels[n], chosen[n])):  # what rounding left over
        ends = range(counts[name], units[name] + 1)
        before = costs[name](counts[name])
        counts[name] = ends[bisect_right(ends, spare + before + 1e-9 * budget, key=costs[name]) - 1]
        spare -= costs[name](counts[name]) - before
    return counts


def _levels(curve: Curve, count: int, min_kept: int) -> list[tuple[int, float]]:
    """Units kept and the error, from all of them down; beyond the last point a power of what is kept, as steep as before it."""
    points = sorted(curve)
    at = np.array([s for s, _ in points])
    logs = np.log(np.maximum([e for _, e in points], 1e-300))
    logs = np.maximum.accumulate(logs)
    last = float(at[-1])
    steps = np.log((1 - at[-2:]).clip(1e-12))  # of what is kept: a layer of which nothing stays is infinitely wrong
    power = (logs[-1] - logs[-2]) / max(steps[0] - steps[-1], 1e-9) if len(at) > 1 else 1.0
    shares = *np.linspace(0, 1, _LEVELS), *np.geomspace(max(1 - last, 1 / count) / 3, 1, _LEVELS)
    kept = {round(share * count) for share in shares if 3 * share > 1 - last} | {count}
    found = []
    for k in sorted((max(k, min(min_kept, count)) for k in kept), reverse=True):
        s = 1 - k / count
        log = np.interp(s, at, logs) if s <= last else logs[-1] + power * (steps[-1] - np.log(max(1 - s, 1e-12)))
        if s < at[0]:
            log = logs[0] + 2 * np.log(max(s, 1e-9) / at[0])  # about quadratic near nothing
        found.append((k, 0.0 if k == count else float(np.exp(min(log, 700.0)))))  # e^709 is the largest number
    return list(dict.fromkeys(found))


def _gain(levels: Sequence[tuple[int, float]], level: int) -> float:
    if level == 0:
        return 0.0
    (more, less_error), (fewer, error) = levels[level - 1], levels[level]
    return (error - less_error) / max(more - fewer, 1)
