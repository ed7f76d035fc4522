"""Tensors as integers: what the storage formats share.

A weight is *zero* when all of its bits are zero, so ``-0.0`` and every NaN are values and come back bit for bit. A format
only has to say **which positions are stored**; the values follow in row-major order. Work goes in pieces that fit a cache,
so packing a billion weights needs no second copy of them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.errors import BadFile

__all__ = [
    "Bits",
    "Indices",
    "Mask",
    "Places",
    "bits_of",
    "check_bitmap",
    "check_part",
    "count_nonzero",
    "gather",
    "pieces",
    "places_of",
    "scatter_",
    "set_bits",
    "to_bitmap",
]

Bits = npt.NDArray[Any]  # one integer a weight
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Places = Iterable[tuple[int, Indices]]  # (start, increasing positions counted from start); pieces in increasing order

_PIECE = 1 << 17  # weights: a piece's mask, positions and values stay in a second-level cache
_FIRST = 1 << 14  # a first look is small, so that a format that cannot pay is given up early
_SET_BITS = np.array([byte.bit_count() for byte in range(256)], np.uint8)
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(tensor: Tensor) -> Bits:
    """View a tensor's bits as a flat integer array, without a copy where it is contiguous and on the CPU.

    >>> bits_of(torch.tensor([0.0, -0.0, 1.0])).tolist()
    [0, -2147483648, 1065353216]
    """
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    integers: Bits = flat.view(_INTEGER[flat.element_size()]).numpy()
    return integers


def pieces(count: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Cut ``range(count)`` into stretches that fit a cache; inner cuts fall on multiples of ``multiple``."""
    start, size = 0, _FIRST
    while start < count:
        stop = min(count, start + max(multiple, size - size % multiple))
        yield start, stop
        start, size = stop, _PIECE


def count_nonzero(tensor: Tensor, *, signed: bool = True) -> int:
    """How many weights have a bit set; without ``signed``, a bit other than the sign of a float, so that -0.0 is a zero.

    >>> count_nonzero(torch.tensor([0.0, -0.0, 1.0])), count_nonzero(torch.tensor([0.0, -0.0, 1.0]), signed=False)
    (2, 1)
    """
    bits, shift = bits_of(tensor), tensor.is_floating_point() and not signed
    return sum(
        int(np.count_nonzero(bits[start:stop] << 1 if shift else bits[start:stop])) for start, stop in pieces(bits.size)
    )


def places_of(bits: Bits) -> Places:
    """Where bits are set."""
    return ((start, np.flatnonzero(bits[start:stop] != 0)) for start, stop in pieces(bits.size))


def gather(tensor: Tensor, places: Places, count: int) -> dict[str, Tensor]:
    """The ``values`` part: the weights at ``places``, every piece of which is asked for once.

    A bool tensor needs no values, because a stored bool is ``True``.
    """
    bits, at = bits_of(tensor), 0
    values = np.empty(count, bits.dtype)
    for start, indices in places:
        np.take(bits[start:], indices, out=values[at : at + indices.size], mode="clip")
        at += indices.size
    return {} if tensor.dtype == torch.bool else {"values": torch.from_numpy(values).view(tensor.dtype)}


def scatter_(out: Tensor, places: Places, values: Tensor | None) -> Tensor:
    """Write ``values`` to ``places`` of ``out`` (contiguous, on the CPU) and zero everywhere else, in place."""
    target, at, done = bits_of(out), 0, 0
    source = None if values is None else bits_of(values)
    for start, indices in places:
        if indices.size:
            end = start + int(indices[-1]) + 1
            target[done:end] = 0  # piece by piece, while it is in the cache
            target[start:end][indices] = 1 if source is None else source[at : at + indices.size]
            at, done = at + indices.size, end
    target[done:] = 0
    return out


def to_bitmap(mask: Mask) -> npt.NDArray[np.uint8]:
    """Eight decisions a byte, the first in the lowest bit.

    >>> to_bitmap(np.array([True, False, False, True, False, False, False, False, True])).tolist()
    [9, 1]
    """
    return np.packbits(mask, bitorder="little")


def check_part(part: Tensor, dtype: torch.dtype, length: int, *, what: str) -> None:
    """Refuse a part that has another type or length than the format says.

    Raises:
        BadFile: naming both.
    """
    if part.dtype != dtype or tuple(part.shape) != (length,):
        raise BadFile(f"{what} should be {dtype} of {length} entries and is {part.dtype} of shape {list(part.shape)}")


def check_bitmap(bitmap: Tensor, length: int, expected: float | None, *, what: str) -> None:
    """Refuse a bitmap whose length, padding or number of set bits is wrong (``None``: any number).

    Raises:
        BadFile: saying which.
    """
    check_part(bitmap, torch.uint8, -(-length // 8), what=what)
    array: npt.NDArray[np.uint8] = bitmap.numpy()
    if length % 8 and int(array[-1]) >> (length % 8):
        raise BadFile(f"{what} has bits set after its last entry")
    if expected is not None and set_bits(array) != expected:
        raise BadFile(f"{what} marks {set_bits(array)} places, but {expected:g} are stored")


def set_bits(bytes_: npt.NDArray[np.uint8]) -> int:
    """How many bits are set."""
    return sum(int(_SET_BITS[bytes_[start:stop]].sum(dtype=np.int64)) for start, stop in pieces(bytes_.size))
