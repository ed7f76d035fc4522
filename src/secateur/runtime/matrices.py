"""How the rows of a weight are kept: single nonzeros, blocks of 2 or 4 neighbouring rows that share columns, or all of them.

The price of one multiplication in each form, measured on an AVX2 machine against the unstructured one: a register of activations that
is loaded serves one row, two or four. The cheapest form is taken; nothing is guessed from how the model was pruned.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PRICES", "Part", "Rows", "compressed", "rows_of"]

PRICES = {"1": 1.0, "2": 0.78, "4": 0.6, "dense": 0.56}


@dataclass(frozen=True)
class Part:
    """Rows ``first`` to ``first + height * groups``; ``starts`` and ``index`` are None where every column is kept."""

    height: int
    first: int
    groups: int
    starts: NDArray[np.int32] | None
    index: NDArray[np.int32] | None
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """A weight in parts."""

    form: str
    parts: tuple[Part, ...]
    density: float


def rows_of(matrix: NDArray[np.float32], form: str | None = None) -> Rows:
    """Keep ``matrix`` in its cheapest form, or in ``form``: "1", "2", "4" or "dense"."""
    kept = matrix != 0
    density = float(kept.mean()) if kept.size else 0.0
    if form is None:
        costs = {key: PRICES[key] * amount for key, amount in _multiplications(kept).items()}
        form = min(costs, key=lambda key: costs[key])
    height = {"1": 1, "2": 2, "4": 4, "dense": 4}[form]
    whole = len(matrix) // height * height
    parts = [_part(matrix[:whole], height, 0, dense=form == "dense")] if whole else []
    if whole < len(matrix):
        parts.append(_part(matrix[whole:], 1, whole, dense=form == "dense"))
    return Rows(form, tuple(parts), density)


def _multiplications(kept: NDArray[np.bool_]) -> dict[str, float]:
    rows = len(kept)
    amounts = {"1": float(kept.sum()), "dense": float(kept.size)}
    for height in (2, 4):
        whole = rows // height * height
        shared = kept[:whole].reshape(-1, height, kept.shape[1]).any(1).sum() * height
        amounts[str(height)] = float(shared + kept[whole:].sum())
    return amounts


def _part(matrix: NDArray[np.float32], height: int, first: int, *, dense: bool) -> Part:
    groups = matrix.reshape(-1, height, matrix.shape[1])
    if dense:
        values = np.ascontiguousarray(groups.transpose(0, 2, 1), np.float32).reshape(-1)
        return Part(height, first, len(groups), None, None, values)
    kept = (groups != 0).any(1)
    which, columns = np.nonzero(kept)
    values = groups.transpose(0, 2, 1)[which, columns]
    return Part(
        height,
        first,
        len(groups),
        _starts(kept),
        columns.astype(np.int32),
        np.ascontiguousarray(values, np.float32).reshape(-1),
    )


def _starts(kept: NDArray[np.bool_]) -> NDArray[np.int32]:
    return np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int32)


@dataclass(frozen=True)
class Compressed:
    """Rows for products with single vectors, with values of a chosen type.

    ``form`` 0: every column; 1: ``extra`` is where rows start and 16-bit columns; 2: halves, of which every 8 neighbouring columns keep 4
    (2:4, 4:8 and what is sparser in that way): ``extra`` is a word for 16 columns, eight places of 3 bits, the first four in the first 8.
    """

    kind: int
    form: int
    values: NDArray[Any]
    extra: tuple[NDArray[Any], ...]
    scales: NDArray[np.float32] | None

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """In the engine's order."""
        return [self.values, *self.extra, *([] if self.scales is None else [self.scales])]


# The price of a number of the matrix: of one that is kept in sparse rows, of any in halves, against one in a dense row.
VECTOR_PRICES = {"float32": (2.1, 0.75), "float16": (2.2, 0.95), "int8": (3.0, 1.0)}


def compressed(matrix: NDArray[np.float32], values: str) -> Compressed:
    """Rows for vectors. ``values``: "float32", "float16" or "int8" (one scale for each row, symmetric, rounded to nearest)."""
    kept, scales = matrix != 0, None
    if values == "int8":
        scales = np.maximum(np.abs(matrix).max(1, initial=0.0), 1e-30).astype(np.float32) / np.float32(127)
        stored: NDArray[Any] = np.rint(matrix / scales[:, None]).astype(np.int8)
    else:
        stored = matrix.astype(np.dtype(values))
    kind = tuple(VECTOR_PRICES).index(values)
    sparse, half = VECTOR_PRICES[values]
    costs = [1.0, kept.mean() * sparse if matrix.shape[1] <= 65536 else 9.0, half if _halved(kept) else 9.0]
    form = int(np.argmin(costs))
    if form == 1:
        _, columns = np.nonzero(kept)
        return Compressed(kind, 1, _bits(stored[kept]), (_starts(kept), columns.astype(np.uint16)), scales)
    if form == 2:
        taken, words = _halves(stored, kept)
        return Compressed(kind, 2, _bits(taken), (words,), scales)
    return Compressed(kind, 0, _bits(np.ascontiguousarray(stored)).reshape(-1), (), scales)


def _eights(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows as [rows, pairs of eights, 8], filled up with zeros to whole pairs."""
    filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 16)))
    return filled.reshape(len(rows), -1, 8)


def _halved(kept: NDArray[np.bool_]) -> bool:
    return bool(_eights(kept).sum(2).max(initial=0) <= 4)


def _halves(stored: NDArray[Any], kept: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The four numbers of every eight, kept ones first, and their places."""
    order = np.argsort(~_eights(kept), axis=2, kind="stable")[:, :, :4]
    taken = np.take_along_axis(_eights(stored), order, 2)
    places = order.reshape(len(stored), -1, 8).astype(np.int32) << np.arange(0, 24, 3, dtype=np.int32)
    return np.ascontiguousarray(taken).reshape(-1), places.sum(2, dtype=np.int32).reshape(-1)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(np.uint16) if values.dtype == np.float16 else values
