"""Exact selection of the k largest scores out of any number, in bounded memory and linear time.

A radix search: floats are mapped to integers that sort alike; a histogram of their upper 16 bits finds the bin that holds the
k-th largest, one of the next 16 bits refines it. Two passes for float32, four for float64, no sort, no copy of the scores.
Ties at the cut are kept in the order of the units, so the count is exact and the result the same on every machine.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from secateur.errors import BadSparsity
from secateur.units import Units

__all__ = ["Cut", "counts_of_top", "counts_with_floors", "cut_for", "top_of_groups"]

_DIGIT = 16
_HALF = 1 << (_DIGIT - 1)


@final
@dataclass(frozen=True)
class Cut:
    """Keep everything above ``key``, and the first ``ties`` of those equal to it; keys are 64 bits long if ``wide``."""

    key: int
    ties: int
    wide: bool

    def keys(self, piece: Tensor) -> Tensor:
        """The keys of one piece, comparable with ``key``."""
        return sort_keys(piece.double() if self.wide else piece)

    def keep(self, piece: Tensor, ties_left: int) -> tuple[Tensor, int]:
        """Decide for one piece of scores; returns the decisions and how many ties may still be kept."""
        keys = self.keys(piece)
        kept = keys > self.key
        if ties_left:
            equal = (keys == self.key).nonzero().squeeze(1)[:ties_left]
            kept[equal] = True
            ties_left -= equal.numel()
        return kept, ties_left


def sort_keys(scores: Tensor) -> Tensor:
    """Integers that sort as the scores do; -0.0 and 0.0 are equal.

    >>> sort_keys(torch.tensor([-1.0, -0.0, 0.0, 1e-45, 2.0])).diff().sign().tolist()
    [1, 0, 1, 1]
    """
    if scores.dtype == torch.float64 or not scores.is_floating_point():
        bits = (scores.double() + 0.0).view(torch.int64)
        return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    bits = (scores.float() + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def cut_for(units: Units, keep: int, names: Iterable[str] | None = None) -> Cut:
    """Find the cut that keeps exactly ``keep`` units among ``names``; needs ``0 < keep < total``."""
    names = list(units if names is None else names)
    wide = any(_is_wide(piece) for name in names for _, piece in _first(units.pieces(name)))
    digits, prefix, wanted = (4 if wide else 2), 0, keep
    for digit in range(digits):
        shift = _DIGIT * (digits - 1 - digit)
        histogram = torch.zeros(1 << _DIGIT, dtype=torch.int64)
        for name in names:
            for _, piece in units.pieces(name):
                keys = sort_keys(piece.double() if wide else piece)
                histogram += _histogram(keys, prefix, shift, first=digit == 0)
        from_top = histogram.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, wanted))
        found = (1 << _DIGIT) - 1 - place
        wanted -= int(from_top[place] - histogram[found])
        prefix = found - _HALF if digit == 0 else (prefix << _DIGIT) | found
    return Cut(key=prefix, ties=wanted, wide=wide)


def counts_of_top(units: Units, keep: int, names: Iterable[str] | None = None) -> dict[str, int]:
    """How many of the ``keep`` largest units each name holds; ties go to earlier names, then to earlier units."""
    names = list(units if names is None else names)
    total = sum(units.count(name) for name in names)
    if keep <= 0 or keep >= total:
        return {name: units.count(name) if keep > 0 else 0 for name in names}
    cut, counts = cut_for(units, keep, names), {}
    ties_left = cut.ties
    for name in names:
        above = equal = 0
        for _, piece in units.pieces(name):
            keys = cut.keys(piece)
            above += int((keys > cut.key).sum())
            equal += int((keys == cut.key).sum()) if ties_left else 0
        counts[name] = above + min(equal, ties_left)
        ties_left -= min(equal, ties_left)
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


def _histogram(keys: Tensor, prefix: int, shift: int, *, first: bool) -> Tensor:
    digit = keys >> shift
    # The topmost digit holds the sign, which is made an offset; lower digits count only under the bin found before.
    digit = digit + _HALF if first else digit[(digit >> _DIGIT) == prefix] & (2 * _HALF - 1)
    return torch.bincount(digit, minlength=1 << _DIGIT).cpu()


def _is_wide(piece: Tensor) -> bool:
    return piece.dtype == torch.float64 or not piece.is_floating_point()


def _first(pieces: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    for item in pieces:
        yield item
        return
