"""Widths from sensitivity curves under a budget: the knapsack, by dynamic programming.

    minimise  sum_g harm_g(width_g)   subject to   sum_g saving_g * (units gone)_g >= dense - limit

Every group offers a few widths, each with the harm that its curve says and the saving that the prices say. The table over (groups,
saving in small steps) gives the optimum, also where curves are not convex. Prices depend on the widths around, so they are taken
half way between all channels and the last solution, and the table is made anew a few times; then units come back while they fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from secateur.errors import UnknownName
from secateur.filling import Room
from secateur.pricing import Pricing
from secateur.units import Units

__all__ = ["Knapsack"]

Points = tuple[tuple[float, float], ...]
_LEVELS = 24  # widths that each group offers
_BINS = 2000  # steps of saving
_PASSES = 6


@final
@dataclass(frozen=True, kw_only=True)
class Knapsack:
    """Choose the widths of least total harm that keep the limit.

    Args:
        pricing: what given counts cost.
        limit: what they may cost.
        harms: pairs of (group, ``(sparsity, harm)`` points), as `secateur.sensitivity` measures them.
        steps: units that come and go together, by name, where widths are rounded; 1 where a name is missing.
        min_kept: units that stay in every group at least; below 1 a fraction of them.
    """

    pricing: Pricing
    limit: float
    harms: tuple[tuple[str, Points], ...]
    steps: tuple[tuple[str, int], ...] = field(default=())
    min_kept: float = 1

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name.

        Raises:
            UnknownName: there is no curve for a group.
            OverBudget: even the smallest widths cost more.
        """
        room, harms = Room(units, self.pricing, self.limit, dict(self.steps), self.min_kept), dict(self.harms)
        for name in units:
            if name not in harms:
                raise UnknownName(
                    f"there is no sensitivity curve for {name!r} (curves: {', '.join(harms) or 'none'}); measure them with the same "
                    "model, ignore= and heads=: sc.sensitivity(model, task, granularity='channel', example_inputs=...)"
                )
        offers = {n: _offers(room.full[n], room.floors[n], room.steps.get(n, 1), harms[n]) for n in units}
        if room.fits(room.full):
            return room.full
        counts, need, best = room.full, self.pricing(room.full) - self.limit, room.floors
        for _ in range(_PASSES):
            middle = {name: (room.full[name] + counts[name]) // 2 for name in room.full}
            counts = _table(offers, room.full, self.pricing.savings(middle), need)
            over = self.pricing(counts) - self.limit
            best = counts if over <= 0 else best
            need += over  # the linear prices were wrong by this much
            if need <= 1e-12 * self.limit:
                break
        return room.filled(best)


def _offers(total: int, floor: int, step: int, points: Points) -> list[tuple[int, float]]:
    """A group's widths and their harms, from all channels down; harm between measured points is linear and never falls."""
    at = sorted(points)
    sparsities = np.array([0.0] + [s for s, _ in at])
    harm = np.maximum.accumulate(np.nan_to_num(np.array([0.0] + [h for _, h in at]), nan=np.inf, posinf=1e30))
    widths = np.unique(np.round(np.linspace(floor, total, _LEVELS) / step).astype(int) * step)
    widths = widths[(widths >= floor) & (widths <= total)]
    found = []
    for width in sorted({*widths.tolist(), total, floor}, reverse=True):
        gone = 1 - width / total
        beyond = max(0.0, gone - sparsities[-1])  # past the last point: as steep as from the start to it
        slope = harm[-1] / max(sparsities[-1], 1e-9)
        found.append((width, float(np.interp(gone, sparsities, harm) + 10 * beyond * max(slope, 1e-9))))
    return found


Offers = Mapping[str, list[tuple[int, float]]]
Row = NDArray[np.float64]


def _table(offers: Offers, full: Mapping[str, int], savings: Mapping[str, float], need: float) -> dict[str, int]:
    """The widths of least harm that save ``need`` or, if that cannot be, as much as possible."""
    bin_size = need / _BINS
    least: Row = np.full(_BINS + 1, np.inf)  # by bins saved so far; the last one stands for enough
    least[0] = 0.0
    layers: list[tuple[str, list[int], Row]] = []
    for name, widths in offers.items():
        gains = [min(int((full[name] - width) * max(savings[name], 0.0) / bin_size), _BINS) for width, _ in widths]
        layers.append((name, gains, least))
        least = np.min([_after(least, gain) + harm for gain, (_, harm) in zip(gains, widths, strict=True)], axis=0)
    place, counts = int(np.flatnonzero(np.isfinite(least))[-1]), dict[str, int]()
    for name, gains, before in reversed(layers):
        ways = [(*_cheapest_before(before, place, gain), k) for k, gain in enumerate(gains)]
        _, place, k = min((harm + offers[name][k][1], source, k) for harm, source, k in ways)
        counts[name] = offers[name][k][0]
    return {name: counts[name] for name in offers}


def _after(least: Row, gain: int) -> Row:
    """Least harms once ``gain`` more bins are saved; what goes beyond the last bin meets in it."""
    if gain == 0:
        return least
    moved: Row = np.full_like(least, np.inf)
    moved[gain:] = least[: len(least) - gain]
    moved[-1] = least[len(least) - 1 - gain :].min()
    return moved


def _cheapest_before(before: Row, place: int, gain: int) -> tuple[float, int]:
    """From which bin a saving of ``gain`` leads to ``place`` with least harm so far."""
    if place < len(before) - 1:
        return (float(before[place - gain]), place - gain) if place >= gain else (np.inf, 0)
    first = len(before) - 1 - gain
    source = first + int(before[first:].argmin())
    return float(before[source]), source
