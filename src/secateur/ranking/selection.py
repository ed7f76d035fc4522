"""Exact selection of the k largest scores out of any number, in bounded memory and linear time.

No sort and no copy of the scores: one pass finds the cut (see `secateur.ranking.bracketing`; `secateur.ranking.radix` for what that cannot
answer) and says for every name how many units lie above it, so selecting takes one pass more.
Ties at the cut are kept in the order of the units, so the count is exact and the result the same on every machine.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from secateur.cuts import Cut, comparable, is_wide
from secateur.errors import BadSparsity
from secateur.ranking import radix
from secateur.ranking.bracketing import standings_at, tally_around, value_at
from secateur.ranking.radix import sort_keys
from secateur.units import Units

__all__ = ["Cut", "counts_of_top", "counts_with_floors", "cut_for", "sort_keys", "top_of_groups"]

Standings = dict[str, tuple[int, int]]  # per name: how many units above the cut, how many at it


def cut_for(units: Units, keep: int, names: Iterable[str] | None = None) -> Cut:
    """Find the cut that keeps exactly ``keep`` units among ``names``; needs ``0 < keep < total``."""
    return _rank(units, keep, list(units if names is None else names))[0]


def counts_of_top(units: Units, keep: int, names: Iterable[str] | None = None) -> dict[str, int]:
    """How many of the ``keep`` largest units each name holds; ties go to earlier names, then to earlier units.

    The cut of every name is left in ``units.cuts``, so that selecting need not search for it again.
    """
    names = list(units if names is None else names)
    total = sum(units.count(name) for name in names)
    if keep <= 0 or keep >= total:
        return {name: units.count(name) if keep > 0 else 0 for name in names}
    cut, standings = _rank(units, keep, names)
    counts, ties_left = dict[str, int](), cut.ties
    for name, (above, equal) in standings.items():
        ties = min(equal, ties_left)
        ties_left -= ties
        counts[name] = above + ties
        units.cuts[name, counts[name]] = Cut(cut.value, ties, equal, cut.wide)
    return counts


def counts_with_floors(units: Units, keep: int, min_kept: int = 0) -> dict[str, int]:
    """`counts_of_top` with at least ``min_kept`` units (or all there are) per name; the total stays exactly ``keep``.

    Raises:
        BadSparsity: the floors alone ask for more than ``keep``.
    """
    floors = {name: min(min_kept, units.count(name)) for name in units}
    if sum(floors.values()) > keep:
        raise BadSparsity(
            f"{keep} units may stay, but min_kept={min_kept} over {len(units)} layers asks for {sum(floors.values())}; "
            "lower min_kept or the sparsity"
        )
    counts, fixed = counts_of_top(units, keep), dict[str, int]()
    while any(counts[name] < floors[name] for name in units):  # each round fixes a layer, so it ends
        fixed |= {name: floors[name] for name in units if counts[name] < floors[name]}
        free = [name for name in units if name not in fixed]
        counts = counts_of_top(units, keep - sum(fixed.values()), free) | fixed
    return counts


def top_of_groups(groups: Tensor, keep: Tensor) -> Tensor:
    """Keep the ``keep[g]`` largest of each row ``g`` of ``groups``; ties by index."""
    order = groups.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(groups.shape[1], device=groups.device) < keep.to(groups.device).unsqueeze(1)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order, chosen.expand_as(order))


def _rank(units: Units, keep: int, names: Sequence[str]) -> tuple[Cut, Standings]:
    wide = any(is_wide(units.tables[name].read(0, 1)) for name in names)
    tallies = tally_around(units, names, keep, wide=wide)
    value = value_at(tallies.values(), keep) if tallies else None
    if tallies is None or value is None:
        value = radix.search(units, names, keep, wide=wide)
        standings = {name: _standing(units, name, value, wide=wide) for name in names}
    else:
        standings = standings_at(tallies, value)
    above = sum(above for above, _ in standings.values())
    return Cut(value, keep - above, sum(equal for _, equal in standings.values()), wide), standings


def _standing(units: Units, name: str, value: float, *, wide: bool) -> tuple[int, int]:
    above = equal = 0
    for _, piece in units.pieces(name):
        scores = comparable(piece, wide)
        above += int((scores > value).count_nonzero())
        equal += int((scores == value).count_nonzero())
    return above, equal
