"""CSR: how many weights each row stores, and their columns in the smallest integers that hold them.

    counts   [rows]    stored weights of each row         uint8, uint16 or int32: the smallest that holds `columns`
    columns  [k]       column of each, increasing in a row   uint8, uint16 or int32: the smallest that holds `columns - 1`
    values   [k]       the stored weights

A tensor of shape ``[r, c, d, ...]`` has r rows of c·d·... columns; one with fewer than two dimensions is a single row.

Size: ``rows · bytes(columns) + k (bytes(columns - 1) + b)`` bytes. It wins where rows are short or most are empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.errors import BadFile
from secateur.packing.bits import Places, bits_of, check_part, count_nonzero, gather, pieces, places_of
from secateur.packing.decoding import below, check_values, decode_with, fill_with_, values_like

__all__ = ["Csr"]

_TYPES = ((torch.uint8, 1 << 8), (torch.uint16, 1 << 16), (torch.int32, 1 << 31))


@final
@dataclass(frozen=True, kw_only=True)
class Csr:
    """Columns row by row, then the values.

    >>> parts = Csr().encode(torch.tensor([[0.0, 7.0], [0.0, 0.0], [5.0, 3.0]]))
    >>> {name: part.tolist() for name, part in parts.items()}
    {'counts': [1, 0, 2], 'columns': [1, 0, 1], 'values': [7.0, 5.0, 3.0]}
    """

    passes: ClassVar[int] = 0
    parts: ClassVar[tuple[str, ...]] = ("counts", "columns", "values")

    def outline(self, tensor: Tensor, nonzeros: int, limit: int) -> dict[str, Tensor] | None:
        """What `encode` gives, on the meta device; ``None`` where it takes ``limit`` bytes or more."""
        rows, width = _rows_columns(tuple(tensor.shape))
        if not 0 < width < 1 << 31:
            return None
        counts = torch.empty(rows, dtype=_smallest(width), device="meta")
        columns = torch.empty(nonzeros, dtype=_smallest(width - 1), device="meta")
        return below(limit, {"counts": counts, "columns": columns} | values_like(tensor, nonzeros))

    def encode(self, tensor: Tensor) -> dict[str, Tensor] | None:
        """Counts, columns and values; ``None`` for an empty tensor or one with 2**31 columns."""
        rows, width = _rows_columns(tuple(tensor.shape))
        if not 0 < width < 1 << 31:
            return None
        bits, stored, at = bits_of(tensor), count_nonzero(tensor), 0
        counts = np.zeros(rows, np.int64)
        columns = torch.empty(stored, dtype=_smallest(width - 1))
        for start, indices in places_of(bits):
            row, column = np.divmod(indices + start, width)
            columns.numpy()[at : at + indices.size] = column
            at += indices.size
            first = int(start // width)
            found = np.bincount(row - first)
            counts[first : first + found.size] += found
        return {"counts": torch.from_numpy(counts).to(_smallest(width)), "columns": columns} | gather(
            tensor, places_of(bits), stored
        )

    def check(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise ``BadFile`` on parts that `encode` cannot have written."""
        check_values(parts)
        rows, width = _rows_columns(shape)
        if not 0 < width < 1 << 31:
            raise BadFile(f"rows of {width} columns are not stored as CSR")
        check_part(parts["counts"], _smallest(width), rows, what="the counts of the rows")
        stored = parts["values"].numel() if "values" in parts else parts["columns"].numel()
        check_part(parts["columns"], _smallest(width - 1), stored, what="the columns")
        counts, columns = parts["counts"].numpy(), parts["columns"].numpy()
        if rows and (int(counts.min()) < 0 or int(counts.max()) > width):
            raise BadFile(f"a row counts {counts.max()} stored weights (lowest {counts.min()}) and has {width} columns")
        if int(counts.sum(dtype=np.int64)) != stored:
            raise BadFile(f"the rows count {int(counts.sum(dtype=np.int64))} weights, but {stored} are stored")
        if stored and (int(columns.min()) < 0 or int(columns.max()) >= width):
            raise BadFile(f"column {columns.max()} (lowest {columns.min()}) in rows of {width}")
        for start, indices in self.places(parts, shape):
            if np.any(np.diff(indices, prepend=-1) <= 0):
                raise BadFile(f"the columns do not increase within a row, after weight {start}")

    def places(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Places:
        """Where the values go; pieces of whole rows."""
        _, width = _rows_columns(shape)
        counts, columns, at = parts["counts"].numpy(), parts["columns"].numpy(), 0
        for start, stop in pieces(counts.size):
            for first, last in _few(counts[start:stop], start):
                rows: npt.NDArray[Any] = np.repeat(np.arange(last - first), counts[first:last])
                yield first * width, rows * width + columns[at : at + rows.size]
                at += rows.size

    def fill_(self, out: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Write the tensor into ``out``; the parts have been checked."""
        fill_with_(self.places, out, parts)

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The tensor again, bit for bit. Raises ``BadFile`` on anything that `encode` cannot have written."""
        return decode_with(self, parts, shape)


def _rows_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def _smallest(largest: int) -> torch.dtype:
    return next(dtype for dtype, end in _TYPES if largest < end)


def _few(counts: npt.NDArray[Any], first: int) -> list[tuple[int, int]]:
    """Stretches of rows that store about a million weights each."""
    ends = np.cumsum(counts, dtype=np.int64)
    cuts = np.flatnonzero(np.diff(ends >> 20, prepend=0)).tolist()
    edges = sorted({0, *cuts, counts.size})
    return [(first + a, first + b) for a, b in pairwise(edges)]
