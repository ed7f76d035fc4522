"""From sensitivity curves: the sparsities that are predicted to do least harm in total.

    minimise  sum_l harm_l(s_l)   subject to   sum_l units_l * s_l = sparsity * sum_l units_l

Harm is taken to add over layers. Each curve is made monotone (removing more never helps) and replaced by its lower convex hull;
then the optimum has one price: every layer gives units until the next one would cost more harm than the price (Lagrange; on a
hull the greedy choice is exact). Pieces that cost exactly the price share what is left in proportion. Units beyond the last
measured point go last, from all layers alike.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, final

from secateur.counting import check_sparsity, kept_of, share_out
from secateur.errors import BadSparsity, UnknownName
from secateur.units import Units

__all__ = ["Sensitive", "hull"]

Points = tuple[tuple[float, float], ...]


@final
@dataclass(frozen=True, kw_only=True)
class Sensitive:
    """Remove ``sparsity`` of all units in total, most from the layers that bear it best.

    Args:
        sparsity: the fraction removed in total.
        harms: pairs of (parameter name, ``(sparsity, harm)`` points); `Sensitivity.allocation` fills them in. Harm is how much
            worse the model gets; below zero counts as zero.
        min_kept: units that stay in every layer at least.
    """

    sparsity: float
    harms: tuple[tuple[str, Points], ...]
    min_kept: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name; the total is exact.

        Raises:
            UnknownName: there is no curve for a layer.
            BadSparsity: ``min_kept`` alone asks for more than may stay.
        """
        harms = dict(self.harms)
        for name in units:
            if name not in harms:
                raise UnknownName(
                    f"there is no sensitivity curve for {name!r} (curves: {', '.join(harms) or 'none'}); measure them first: "
                    "sc.sensitivity(model, task).allocation(sparsity=...), or exclude the layer"
                )
        keep = kept_of(self.sparsity, units.total)
        floors = {name: min(self.min_kept, units.count(name)) for name in units}
        if sum(floors.values()) > keep:
            raise BadSparsity(
                f"{keep} units may stay, but the minimum kept per layer asks for {sum(floors.values())}; lower min_kept or the sparsity"
            )
        pieces = [p for n in units for p in _pieces(n, harms[n], units.count(n), units.count(n) - floors[n])]
        removed = _take_cheapest(pieces, units.total - keep)
        return {name: units.count(name) - removed.get(name, 0) for name in units}


class _Piece(NamedTuple):
    """Some units of one layer that all cost the same."""

    name: str
    units: int
    price: float


def _pieces(name: str, points: Points, count: int, removable: int) -> Iterator[_Piece]:
    """Cut a curve at its corners; what no point reaches has no finite price."""
    done, harm = 0, 0.0
    for sparsity, next_harm in hull(points):
        end = min(round(sparsity * count), removable)
        if end > done:
            yield _Piece(name, end - done, (next_harm - harm) / (round(sparsity * count) - done))
        done, harm = max(done, end), next_harm
    if removable > done:
        yield _Piece(name, removable - done, float("inf"))


def _take_cheapest(pieces: list[_Piece], remove: int) -> dict[str, int]:
    removed: dict[str, int] = {}
    for _, group in groupby(sorted(pieces, key=lambda piece: piece.price), key=lambda piece: piece.price):
        offered: dict[str, int] = {}
        for piece in group:
            offered[piece.name] = offered.get(piece.name, 0) + piece.units
        taken = share_out(offered, min(remove, sum(offered.values())), limits=offered)
        removed = {name: removed.get(name, 0) + taken.get(name, 0) for name in {**removed, **taken}}
        remove -= sum(taken.values())
    return removed


def hull(points: Points) -> Points:
    """The lower convex hull of a monotone reading of ``points``, from (0, 0) on, which itself is left out.

    >>> hull(((0.5, 0.0), (0.8, 0.3), (0.9, 0.2), (1.0, 1.0)))
    ((0.5, 0.0), (0.9, 0.3), (1.0, 1.0))
    """
    corners: list[tuple[float, float]] = [(0.0, 0.0)]
    worst = 0.0
    for sparsity, harm in sorted(points):
        worst = max(worst, harm) if not math.isnan(harm) else math.inf  # NaN: the model is broken there
        if sparsity <= corners[-1][0] or worst == math.inf:
            continue
        while len(corners) > 1 and not _bends_up(corners[-2], corners[-1], (sparsity, worst)):
            corners.pop()
        corners.append((sparsity, worst))
    return tuple(corners[1:])


def _bends_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - b[0]) < (c[1] - b[1]) * (b[0] - a[0])
