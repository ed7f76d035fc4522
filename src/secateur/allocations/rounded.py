"""Widths that hardware likes: round what stays to multiples.

A count of 8k-1 or 8k+1 channels often runs slower than 8k+8: kernels work on 8 or 16 at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import final

from secateur.protocols import Allocation
from secateur.units import Units

__all__ = ["Rounded"]


@final
@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Round the counts of another allocation to the nearest multiple of ``multiple`` channels, at least one multiple.

    Args:
        allocation: what decides about the counts.
        multiple: e.g. 8.
        entries: channels per unit, by name (64 for heads of width 64); 1 where a name is missing.
    """

    allocation: Allocation
    multiple: int
    entries: tuple[tuple[str, int], ...] = ()

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name; a layer with fewer channels than one multiple stays whole."""
        entries = dict(self.entries)
        return {
            name: self._round(count, units.count(name), entries.get(name, 1))
            for name, count in self.allocation(units).items()
        }

    def _round(self, count: int, total: int, entries: int) -> int:
        step = self.multiple // gcd(self.multiple, entries)
        nearest = max(step, step * int(count / step + 0.5))
        return min(nearest, total) if count < total else total
