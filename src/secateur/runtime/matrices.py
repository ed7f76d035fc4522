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
    """Rows for products with single vectors: 16-bit columns where they are sparse, and values of a chosen type."""

    kind: int
    values: NDArray[Any]
    starts: NDArray[np.int32] | None
    index: NDArray[np.uint16] | None
    scales: NDArray[np.float32] | None

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """In the engine's order."""
        return [a for a in (self.values, self.starts, self.index, self.scales) if a is not None]


def compressed(matrix: NDArray[np.float32], values: str) -> Compressed:
    """Rows for vectors. ``values``: "float32", "float16" or "int8" (one scale for each row, symmetric, rounded to nearest)."""
    kept, scales = matrix != 0, None
    if values == "int8":
        scales = np.maximum(np.abs(matrix).max(1, initial=0.0), 1e-30).astype(np.float32) / np.float32(127)
        stored: NDArray[Any] = np.rint(matrix / scales[:, None]).astype(np.int8)
    else:
        stored = matrix.astype(np.dtype(values))
    kind = ("float32", "float16", "int8").index(values)
    price = {"float32": 1 / 0.62, "float16": 1 / 0.45, "int8": 1 / 0.33}[
        values
    ]  # a kept nonzero against a dense number
    if kept.mean() * price > 1 or matrix.shape[1] > 65536:
        return Compressed(kind, _bits(np.ascontiguousarray(stored)).reshape(-1), None, None, scales)
    _, columns = np.nonzero(kept)
    return Compressed(kind, _bits(stored[kept]), _starts(kept), columns.astype(np.uint16), scales)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(np.uint16) if values.dtype == np.float16 else values
