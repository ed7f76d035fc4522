"""What a network costs at given widths, predicted from how much of every dimension is left.

    cost(counts) = sum over parts of  amount * product over its places of  left(place) / size(place)
    left(place)  = size - sum over groups of  (units gone) * (entries of one unit in this place)

Parameters are exactly of this form, a part for each tensor; so are the multiply-accumulates of every layer with a weight. Other costs
are fitted to it (bilinear in the widths of what a layer reads and makes; Yang et al. 2019, ECC, eq. 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple, final

import torch
from torch import Tensor

__all__ = ["Dimension", "Part", "Place", "Pricing"]

Place = tuple[str, int]  # tensor name, dimension


class Part(NamedTuple):
    """A share of the cost that shrinks with everything in ``places``."""

    amount: float
    places: tuple[Place, ...] = ()


class Dimension(NamedTuple):
    """One dimension of one tensor: its full size, and which groups have how many entries of each unit in it."""

    place: Place
    size: int
    entries: tuple[tuple[str, int], ...]


@final
@dataclass(frozen=True, kw_only=True)
class Pricing:
    """The predicted cost as a function of how many units of each group stay.

    Args:
        parts: what the cost adds up from.
        dimensions: how groups sit in tensors.
        units: group to how many units it has.
        factor: what the prediction is multiplied with, once it was held against a measurement.

    >>> width = Dimension(("a.weight", 0), 8, (("a", 1),)), Dimension(("b.weight", 1), 8, (("a", 1),))
    >>> pricing = Pricing(parts=(Part(24, (("a.weight", 0),)), Part(16, (("b.weight", 1),))), dimensions=width, units=(("a", 8),))
    >>> pricing({"a": 8}), pricing({"a": 4}), pricing.savings({"a": 4})
    (40.0, 20.0, {'a': 5.0})
    """

    parts: tuple[Part, ...]
    dimensions: tuple[Dimension, ...]
    units: tuple[tuple[str, int], ...]
    factor: float = field(default=1.0)

    def __call__(self, counts: Mapping[str, int]) -> float:
        """The cost when ``counts[name]`` units of each group stay."""
        return float(self._cost(self._vector(counts)))

    def savings(self, counts: Mapping[str, int]) -> dict[str, float]:
        """What one unit more or less of each group changes at these counts."""
        kept = self._vector(counts).requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self._cost(kept), kept)
        return dict(zip(self._names, slope.tolist(), strict=True))

    def alike(self, limit: float) -> float:
        """The fraction of its units, the same in every group, that costs ``limit``; 1 if all of them do.

        >>> width = Dimension(("a.weight", 0), 8, (("a", 1),))
        >>> round(Pricing(parts=(Part(24, (width.place,)), Part(6)), dimensions=(width,), units=(("a", 8),)).alike(18), 6)
        0.5
        """
        full = _sheet(self).full
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if float(self._cost(middle * full)) <= limit else (low, middle)
        return 1.0 if float(self._cost(full)) <= limit else low

    @cached_property
    def _names(self) -> list[str]:
        return [name for name, _ in self.units]

    def _vector(self, counts: Mapping[str, int]) -> Tensor:
        return torch.tensor([float(counts.get(name, units)) for name, units in self.units], dtype=torch.float64)

    def _cost(self, kept: Tensor) -> Tensor:
        sheet = _sheet(self)
        left = 1 - sheet.shares @ (sheet.full - kept)
        left = torch.cat([left, left.new_ones(1)])  # the last one stands for "no place"
        return self.factor * (sheet.amounts * left[sheet.places].prod(1)).sum()


class _Sheet(NamedTuple):
    """A pricing as arrays: how much of a dimension one unit is, ``[dimensions, groups]``; parts; places of parts."""

    shares: Tensor
    full: Tensor
    amounts: Tensor
    places: Tensor


@lru_cache(maxsize=8)
def _sheet(pricing: Pricing) -> _Sheet:
    columns = {name: k for k, (name, _) in enumerate(pricing.units)}
    rows = {dimension.place: k for k, dimension in enumerate(pricing.dimensions)}
    shares = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for row, dimension in enumerate(pricing.dimensions):
        for name, entries in dimension.entries:
            shares[row, columns[name]] += entries / dimension.size
    moving = [[rows[place] for place in part.places if place in rows] for part in pricing.parts]
    longest = max(map(len, moving), default=0)
    padded = [found + [len(rows)] * (longest - len(found)) for found in moving]
    return _Sheet(
        shares=shares,
        full=torch.tensor([float(units) for _, units in pricing.units], dtype=torch.float64),
        amounts=torch.tensor([part.amount for part in pricing.parts], dtype=torch.float64),
        places=torch.tensor(padded, dtype=torch.long).reshape(len(moving), longest),
    )
