"""Inputs: what they may be, and what of them each program runs on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur_engine.errors import BadInput

__all__ = ["among", "array_of", "checked", "like_inputs", "piece_of"]

_WHOLE = 1 << 24


def piece_of(array: NDArray[Any], said: Mapping[str, Any], axis: int, start: int, size: int) -> NDArray[Any]:
    """The part of an input that one program runs on."""
    if not said["split"] or array.ndim <= axis or (start == 0 and array.shape[axis] == size):
        return array
    return array[(slice(None),) * axis + (slice(start, start + size),)]


def array_of(x: Any, place: int) -> NDArray[Any]:
    """An input as an array of numbers.

    Raises:
        BadInput: it is none.
    """
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if str(x.dtype) == "torch.bfloat16" else x  # numpy has no such numbers
    array = np.asarray(x)
    if array.dtype.kind not in "biuf":
        raise BadInput(f"input {place} holds {array.dtype}, and real numbers are expected")
    return array


def checked(array: NDArray[Any], said: Mapping[str, Any], place: int) -> NDArray[Any]:
    """An input as the engine takes it.

    Raises:
        BadInput: it has another shape than the program's, or numbers that it cannot use.
    """
    if array.shape != tuple(said["shape"]):
        raise BadInput(f"input {place} has shape {list(array.shape)}; the model was compiled for {said['shape']}")
    whole = said["dtype"] in ("int64", "int32")
    if whole and array.dtype.kind == "f" and not bool((array == np.floor(array)).all()):
        raise BadInput(f"input {place} holds parts of numbers, and whole numbers are expected")
    rows = said.get("rows")
    if (whole or rows is not None) and array.size:
        low, high = array.min(), array.max()
        if rows is not None and not (low >= 0 and high < rows):
            raise BadInput(f"input {place} has numbers from {low} to {high}; there are {rows} rows to look up")
        if low < -_WHOLE or high > _WHOLE:
            raise BadInput(f"input {place} has numbers from {low} to {high}; beyond {_WHOLE} float32 has gaps")
    return np.require(array, np.float32, ["C", "W"])


def among(sizes: Sequence[int]) -> str:
    """``sizes 1, 2, 4``."""
    return f"sizes {', '.join(map(str, sizes))}" if len(sizes) > 1 else f"size {sizes[0]}"


def like_inputs(inputs: Sequence[Any]) -> Callable[[NDArray[Any]], Any]:
    """What makes of the results what the inputs are: torch tensors where one of them is."""
    if any(hasattr(x, "detach") for x in inputs):
        import torch

        return torch.from_numpy
    return lambda array: array
