"""Blocks: one bit says whether a whole block of weights is stored. For 4x1, 8x8, ..., kernels, filters and input channels.

    mask    uint8 [ceil(blocks / 8)]   bit i % 8 of byte i // 8 is set where block i is stored
    values  [k]                        the weights of the stored blocks, in row-major order of the TENSOR

A tensor of shape ``[out, in, ...]`` is read as ``[out, in, taps]`` and cut into blocks of ``rows`` x ``columns`` x ``taps``; they are
numbered in row-major order of ``[out / rows, in / columns, taps / taps of a block]``.

Size: ``ceil(blocks / 8) + k b`` bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.errors import BadFile
from secateur.packing.bits import Mask, Places, bits_of, check_bitmap, gather, pieces, to_bitmap
from secateur.packing.decoding import below, check_values, decode_with, fill_with_, stored_count, values_like

__all__ = ["Block"]

_SIDES = ((1, 4), (4, 1), (1, 8), (8, 1), (4, 4), (8, 8), (1, 16), (16, 1), (16, 16), (32, 32))


@final
@dataclass(frozen=True, kw_only=True)
class Block:
    """Whole blocks, stored or not.

    >>> weight = torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    >>> {name: part.tolist() for name, part in Block(rows=2, columns=2).encode(weight).items()}
    {'mask': [1], 'values': [1.0, 2.0, 3.0, 4.0]}
    """

    passes: ClassVar[int] = 3
    parts: ClassVar[tuple[str, ...]] = ("mask", "values")
    rows: int = 4
    columns: int = 1
    taps: int = 1

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.taps) < 1:
            raise BadFile(f"there are no blocks of {self.rows}x{self.columns}x{self.taps}")

    @classmethod
    def variants(cls, shape: tuple[int, ...]) -> tuple["Block", ...]:
        """What is worth trying for a tensor of this shape: square and flat blocks, kernels, filters, input channels."""
        if len(shape) < 2 or prod(shape) == 0:
            return ()
        out, into, taps = _three(shape)
        sizes = [(r, c, 1) for r, c in _SIDES] + [(1, 1, taps), (1, into, taps), (out, 1, taps)]
        useful = {s: None for s in sizes if prod(s) > 1 and out % s[0] == 0 and into % s[1] == 0}
        return tuple(cls(rows=r, columns=c, taps=t) for r, c, t in useful)

    def outline(self, tensor: Tensor, nonzeros: int, limit: int) -> dict[str, Tensor] | None:
        """What `encode` gives, on the meta device; ``None`` where the tensor does not divide or it is not below ``limit``."""
        if not self._holds(tensor):
            return None
        bits, stored, left = bits_of(tensor), 0, nonzeros
        for start, stop in pieces(bits.size, self._slab(tuple(tensor.shape))):
            if self._outlined(tensor, stored + left, limit) is None:  # even if no later block held a zero
                return None
            nonzero = bits[start:stop] != 0
            stored += int(np.count_nonzero(self._kept(nonzero, tuple(tensor.shape)))) * self._weights
            left -= int(np.count_nonzero(nonzero))
        return self._outlined(tensor, stored, limit)

    def encode(self, tensor: Tensor) -> dict[str, Tensor] | None:
        """Which blocks hold a non-zero, and their weights; ``None`` where the tensor does not divide."""
        shape = tuple(tensor.shape)
        if not self._holds(tensor):
            return None
        bits = bits_of(tensor)
        kept = np.empty(bits.size // self._weights, np.bool_)
        for start, stop in pieces(bits.size, self._slab(shape)):
            kept[start // self._weights : stop // self._weights] = self._kept(bits[start:stop] != 0, shape).reshape(-1)
        parts = {"mask": torch.from_numpy(to_bitmap(kept))}
        return parts | gather(tensor, self.places(parts, shape), int(np.count_nonzero(kept)) * self._weights)

    def check(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise ``BadFile`` on parts that `encode` cannot have written."""
        if not self._divides(shape):
            raise BadFile(
                f"a tensor of shape {list(shape)} does not divide into blocks of {self.rows}x{self.columns}x{self.taps}"
            )
        check_values(parts, zeros=True)
        stored = stored_count(parts)
        if stored is None:
            raise BadFile("bools are not stored in blocks")
        check_bitmap(parts["mask"], prod(shape) // self._weights, stored / self._weights, what="the mask of blocks")

    def places(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Places:
        """Where the values go; pieces of whole rows of blocks."""
        mask, (_, into, taps) = parts["mask"].numpy(), _three(shape)
        for start, stop in pieces(prod(shape), self._slab(shape)):
            first, last = start // self._weights, stop // self._weights
            bits = np.unpackbits(mask[first // 8 : -(-last // 8)], bitorder="little")[first % 8 :][: last - first]
            kept = bits.reshape(-1, 1, into // self.columns, 1, taps // self.taps, 1)
            sizes = (kept.shape[0], self.rows, kept.shape[2], self.columns, kept.shape[4], self.taps)
            yield start, np.flatnonzero(np.broadcast_to(kept.view(np.bool_), sizes).reshape(-1))

    def fill_(self, out: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Write the tensor into ``out``; the parts have been checked."""
        fill_with_(self.places, out, parts)

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The tensor again, bit for bit. Raises ``BadFile`` on anything that `encode` cannot have written."""
        return decode_with(self, parts, shape)

    def _outlined(self, tensor: Tensor, stored: int, limit: int) -> dict[str, Tensor] | None:
        mask = torch.empty(-(-(tensor.numel() // self._weights) // 8), dtype=torch.uint8, device="meta")
        return below(limit, {"mask": mask} | values_like(tensor, stored))

    @property
    def _weights(self) -> int:
        return self.rows * self.columns * self.taps

    def _holds(self, tensor: Tensor) -> bool:
        return tensor.dtype != torch.bool and self._divides(tuple(tensor.shape))  # a stored bool would be True

    def _divides(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2 or prod(shape) == 0:
            return False
        sizes = zip(_three(shape), (self.rows, self.columns, self.taps), strict=True)
        return all(whole % part == 0 for whole, part in sizes)

    def _slab(self, shape: tuple[int, ...]) -> int:
        """Weights in one row of blocks."""
        return self.rows * prod(shape[1:])

    def _kept(self, nonzero: Mask, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Which blocks of some whole rows of blocks hold a non-zero."""
        _, into, taps = _three(shape)
        rows = _any(nonzero.reshape(-1, self.rows, prod(shape[1:])))
        columns = _any(rows.reshape(-1, self.columns, taps))
        return _any(columns.reshape(-1, self.taps, 1)).reshape(-1, into // self.columns, taps // self.taps)


def _any(mask: Mask) -> Mask:
    """``any`` over the middle axis; short axes one slice at a time, which is several times faster in numpy."""
    if mask.shape[1] > 32:
        return np.asarray(mask.any(1))
    found = mask[:, 0].copy()
    for member in range(1, mask.shape[1]):
        found |= mask[:, member]
    return found


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], shape[1], prod(shape[2:])
