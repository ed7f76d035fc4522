"""Units: what a granularity makes of scores. Each name holds a table ``[group, unit]`` of finished scores.

A unit leaves or stays as a whole (a weight, a block, a filter); a group is what a quota counts in (the 4 of 2:4).
Tables are read in pieces, so that ranking a billion weights needs no second copy of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from secateur.cuts import Cut
from secateur.errors import BadScores
from secateur.facts import LayerFacts

__all__ = ["PIECE", "Table", "Units"]

PIECE = 1 << 18  # scores per piece: 1 MB of float32, so that a piece and what is made of it stay in cache


@final
@dataclass(frozen=True)
class Table:
    """The finished scores of one name, read on demand.

    Args:
        shape: ``(groups, units per group)``.
        read: ``read(start, stop)`` gives that stretch of the scores in row-major order, one-dimensional.
        weights: how many weights one unit holds (a mean where they differ).
        layout: how the parameter behind it is laid out, and
        tensor_shape: its shape; both for allocations that look at shapes.
    """

    shape: tuple[int, int]
    read: Callable[[int, int], Tensor]
    weights: float = 1.0
    layout: LayerFacts = field(default_factory=LayerFacts)
    tensor_shape: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many units the table has."""
        return self.shape[0] * self.shape[1]

    @classmethod
    def of(cls, scores: Tensor, weights: float = 1.0) -> "Table":
        """Wrap scores that are in memory: ``[group, unit]``, or ``[unit]`` for a single group."""
        table = scores if scores.dim() == 2 else scores.reshape(1, -1)
        flat = table.reshape(-1)
        return cls(shape=(table.shape[0], table.shape[1]), read=lambda start, stop: flat[start:stop], weights=weights)


@final
class Units(Mapping[str, Tensor]):
    """Name to ``[group, unit]`` scores; `tables` gives shapes without reading, `pieces` reads in bounded memory.

    >>> import torch
    >>> units = Units({"a": Table.of(torch.tensor([3.0, 1.0, 2.0]))})
    >>> units["a"], units.count("a")
    (tensor([[3., 1., 2.]]), 3)
    """

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.tables = dict(tables)
        self.cuts: dict[tuple[str, int], Cut] = {}  # found on the way: the cut that keeps so many units of a name

    def __getitem__(self, name: str) -> Tensor:
        table = self.tables[name]
        return self._checked(name, table.read(0, table.count)).reshape(table.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def count(self, name: str) -> int:
        """How many units ``name`` has."""
        return self.tables[name].count

    @property
    def total(self) -> int:
        """How many units there are."""
        return sum(table.count for table in self.tables.values())

    def only(self, names: object) -> "Units":
        """Return the units of some names, in the order kept here."""
        return Units({n: t for n, t in self.tables.items() if n in names})  # type: ignore[operator]

    def pieces(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(start, scores)`` over the flattened table; pieces hold whole groups, about `PIECE` scores each.

        Raises:
            BadScores: a score is NaN.
        """
        groups, width = self.tables[name].shape
        step = width * max(1, PIECE // width) if groups > 1 and width else PIECE
        for start in range(0, groups * width, step):
            stop = min(start + step, groups * width)
            yield start, self._checked(name, self.tables[name].read(start, stop))

    @staticmethod
    def _checked(name: str, scores: Tensor) -> Tensor:
        if scores.numel() and torch.isnan(scores.amax()):
            bad = int(torch.isnan(scores).sum())
            raise BadScores(
                f"{bad} of {scores.numel()} scores of {name!r} are NaN, so they cannot be ranked: look for NaN or infinite "
                f"weights, gradients or inputs in that layer, or exclude it with ignore=[{name!r}]"
            )
        return scores
