"""The k-th largest score in one pass: guess a narrow bracket from a sample, count outside, look only inside.

    sample --> low, high;   one pass: how many > high, = high, = low, and the few between;   the k-th largest of the few

The guess decides the speed, never the answer: where the k-th largest lies outside the bracket, or more than a sixteenth of all
scores lies inside, there is no answer and the caller takes `secateur.ranking.radix`. (Floyd & Rivest 1975 choose such a bracket
recursively; one level is enough here.)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secateur.cuts import comparable
from secateur.units import Units

__all__ = ["Tally", "standings_at", "tally_around", "value_at"]

_SMALL = 1 << 16  # up to here everything is the sample
_RUN = 64  # neighbours read at once: reading single scores would cost more than the pass itself
_SAMPLE = 1 << 20
_GOLDEN = (math.sqrt(5) - 1) / 2

Array = NDArray[Any]


@final
@dataclass(frozen=True)
class Tally:
    """How the scores of one name lie about a bracket."""

    low: float
    high: float
    above: int  # > high
    at_high: int
    between: Array  # low < score < high
    at_low: int  # 0 where low == high

    def standing(self, value: float) -> tuple[int, int]:
        """How many scores lie above ``value`` and how many are equal to it; ``value`` is inside the bracket."""
        if value == self.high:
            return self.above, self.at_high
        above_low = self.above + self.at_high
        if value == self.low:
            return above_low + self.between.size, self.at_low
        return above_low + int((self.between > value).sum()), int((self.between == value).sum())


def tally_around(units: Units, names: Sequence[str], keep: int, *, wide: bool) -> dict[str, Tally] | None:
    """Count every name about a bracket for the ``keep``-th largest; ``None`` where too much lies inside it."""
    total = sum(units.count(name) for name in names)
    low, high = _bracket(units, names, keep / total, wide=wide) if total > _SMALL else (-math.inf, math.inf)
    room, tallies = _SMALL + total // 16, dict[str, Tally]()
    for name in names:
        tally = _tally(units, name, (low, high), room=room, wide=wide)
        if tally is None:
            return None
        tallies[name], room = tally, room - tally.between.size
    return tallies


def value_at(tallies: Iterable[Tally], keep: int) -> float | None:
    """The ``keep``-th largest score, or ``None`` where it lies outside the bracket."""
    tallies = list(tallies)
    between = np.concatenate([tally.between for tally in tallies])
    left = keep - sum(tally.above for tally in tallies)
    at_high, at_low = sum(tally.at_high for tally in tallies), sum(tally.at_low for tally in tallies)
    if left <= 0 or left > at_high + between.size + at_low:
        return None
    if left <= at_high:
        return tallies[0].high
    place = between.size - (left - at_high)
    return float(np.partition(between, place)[place]) if place >= 0 else tallies[0].low


def standings_at(tallies: Mapping[str, Tally], value: float) -> dict[str, tuple[int, int]]:
    """`Tally.standing` for every name."""
    return {name: tally.standing(value) for name, tally in tallies.items()}


def _bracket(units: Units, names: Sequence[str], fraction: float, *, wide: bool) -> tuple[float, float]:
    """Two scores that very likely enclose the one below which all but ``fraction`` of the scores lie."""
    sample = _sample(units, names, wide=wide)
    sample.sort()
    # Neighbours are alike, so a sample counts as an eighth of its size; four standard deviations to either side.
    margin = 4 * math.sqrt(8 * fraction * (1 - fraction) * sample.size) + 32
    first, last = (round((1 - fraction) * sample.size + side * margin) for side in (-1, 1))
    low = float(sample[first]) if first >= 0 else -math.inf
    high = float(sample[last]) if last < sample.size else math.inf
    return low, high


def _sample(units: Units, names: Sequence[str], *, wide: bool) -> Array:
    """Runs of neighbours all over the scores, as if the names stood in one row.

    Every stretch of equal length gives one run; where in the stretch, a golden-ratio sequence says, so that a period in the
    weights (a row length) cannot hide from the sample. Nothing is random: two machines read the same.
    """
    ends = list(accumulate(units.count(name) for name in names))
    runs = max(_SMALL, min(_SAMPLE, ends[-1] // 256)) // _RUN
    stretch = ends[-1] / runs
    places = ((np.arange(runs) + np.arange(1, runs + 1) * _GOLDEN % 1) * stretch).astype(np.int64)
    owners = np.searchsorted(ends, places, side="right")
    found = []
    for place, owner in zip(places.tolist(), owners.tolist(), strict=True):
        table = units.tables[names[owner]]
        start = place - (ends[owner] - table.count)
        found.append(_array(table.read(start, min(start + _RUN, table.count)), wide=wide))
    return np.concatenate(found)


def _tally(units: Units, name: str, bracket: tuple[float, float], *, room: int, wide: bool) -> Tally | None:
    low, high = bracket
    above = from_high = from_low = 0
    between: list[Array] = [np.empty(0, np.float64 if wide else np.float32)]
    for _, piece in units.pieces(name):
        scores = _array(piece, wide=wide)
        reaches_high = scores >= high
        # numpy, because it picks a few out of many four times faster than a masked tensor does
        inside = scores[np.flatnonzero((scores > low) ^ reaches_high)] if low < high else between[0]
        above += int(np.count_nonzero(scores > high))
        from_high += int(np.count_nonzero(reaches_high))
        from_low += int(np.count_nonzero(scores >= low))
        between.append(inside)
        room -= inside.size
        if room < 0:
            return None
    few = np.concatenate(between)
    return Tally(low, high, above, from_high - above, few, from_low - from_high - few.size)


def _array(scores: Tensor, *, wide: bool) -> Array:
    return comparable(scores, wide).detach().cpu().numpy()
