"""Which batch sizes get a program: powers of two, or rows alone where a batch would not stay in the cache."""

from collections.abc import Sequence
from math import prod
from typing import Any

from numpy.typing import NDArray

from secateur.errors import WrongModel
from secateur.examples import Example
from secateur.runtime.trying import size_of

__all__ = ["MANY", "batch_sizes", "row_by_row"]

MANY = 64  # sizes with a program each, and rows that are tried together
_LARGE = 8 << 20  # bytes: what passes between the layers of a batch does not stay in the cache beyond this


def batch_sizes(example: Example, batch: int | tuple[int, int] | None, axis: int, *, every: bool) -> list[int]:
    """The sizes that get a program: powers of two, which all others are made of, or ``every`` one of a range."""
    if batch is None:
        return [size_of(example, axis) or 1]
    low, high = (batch, batch) if isinstance(batch, int) else batch
    if low == high or (every and high - low < MANY):
        return list(range(low, high + 1))
    if every:
        raise WrongModel(
            f"batch=({low}, {high}): the rows of this model cannot be run apart from each other, so each of {high - low + 1} sizes would need a "
            f"program of its own; choose a range of {MANY} at most"
        )
    return sorted({low, high, *(1 << k for k in range(high.bit_length()) if low <= 1 << k < high), 1})


def row_by_row(program: dict[str, Any], arrays: Sequence[NDArray[Any]], rows: int) -> bool:
    """Whether ``rows`` are better run one by one, from the program of one row.

    Together they read the weights once, but what passes between layers is ``rows`` times as large; apart every row reads all weights again
    and finds in the cache what the layer before it wrote.
    """
    steps = [step for step in program["steps"] if step[0] != "lookup"]  # which reads a few rows of its table
    weights = sum(arrays[k].nbytes for k in {k for step in steps for k in step[4]})
    passed = sum(4 * prod(step[1][-1][3]) for step in steps if step[1])
    return bool(rows * 4 * program["arena"] > _LARGE and weights < 4 * passed)
