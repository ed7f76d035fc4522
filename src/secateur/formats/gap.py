"""Gaps: how many zeros lie before each stored weight, in 4 or 8 bits. The best format above about 76 % sparsity.

    gaps    uint8 [g]    codes of `bits` bits, the first in the low bits of a byte
    values  [k]          the stored weights

A code below ``E = 2**bits - 1`` skips that many zeros and places one value; the code ``E`` skips E zeros and places none. Zeros after
the last value are not written. With 4 bits an odd number of codes is padded with one ``E``. At 90 % sparsity 4-bit gaps
take 0.50 bits a weight, where the entropy of the positions is 0.47 and a bitmask takes 1.

Size: ``ceil((k + escapes) bits / 8) + k b`` bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.errors import BadFile
from secateur.packing.bits import Places, bits_of, count_nonzero, gather, pieces, places_of
from secateur.packing.decoding import below, check_values, decode_with, fill_with_, stored_count, values_like

__all__ = ["Gap"]

Codes = npt.NDArray[np.uint8]


@final
@dataclass(frozen=True, kw_only=True)
class Gap:
    """Run lengths of zeros, then the values.

    >>> parts = Gap(bits=4).encode(torch.tensor([0.0, 0.0, 7.0, 5.0, 0.0]))
    >>> parts["gaps"].tolist(), parts["values"].tolist()
    ([2], [7.0, 5.0])
    """

    passes: ClassVar[int] = 1
    parts: ClassVar[tuple[str, ...]] = ("gaps", "values")
    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise BadFile(f"gaps of {self.bits} bits do not exist; there are 4 and 8")

    @classmethod
    def variants(cls, shape: tuple[int, ...]) -> tuple["Gap", ...]:  # noqa: ARG003
        """What is worth trying for a tensor of this shape."""
        return cls(bits=4), cls(bits=8)

    def outline(self, tensor: Tensor, nonzeros: int, limit: int) -> dict[str, Tensor] | None:
        """What `encode` gives, on the meta device; ``None`` where it takes ``limit`` bytes or more."""
        if self._outlined(tensor, nonzeros, nonzeros, limit) is None:  # too large even without an escape
            return None
        return self._outlined(tensor, nonzeros, nonzeros + self._escapes(tensor), limit)

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """The gaps and the values that are not zero."""
        written = [np.zeros(0, np.uint8)]

        def noting_gaps() -> Places:  # one look at the tensor gives both parts
            last = -1
            for start, indices in places_of(bits_of(tensor)):
                if indices.size:
                    written.append(self._code(np.diff(indices, prepend=last - start) - 1))
                    last = int(indices[-1]) + start
                yield start, indices

        values = gather(tensor, noting_gaps(), count_nonzero(tensor))
        return {"gaps": torch.from_numpy(self._pack(written))} | values

    def check(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise ``BadFile`` on parts that `encode` cannot have written."""
        check_values(parts)
        gaps = parts["gaps"]
        if gaps.dtype != torch.uint8 or gaps.dim() != 1:
            raise BadFile(f"the gaps should be a list of bytes and are {gaps.dtype} of shape {list(gaps.shape)}")
        end = found = 0
        for codes in self._codes(gaps.numpy()):
            placed = int(np.count_nonzero(codes != self._escape))
            found, end = found + placed, end + placed + int(codes.sum(dtype=np.int64))
        if end > prod(shape):
            raise BadFile(f"the gaps reach weight {end} of a tensor of {prod(shape)}")
        if found != (stored_count(parts) if "values" in parts else found):
            raise BadFile(f"the gaps place {found} values, but {stored_count(parts)} are stored")
        if gaps.numel() and self._last(int(gaps[-1])) == self._escape:
            raise BadFile("the gaps end with one that places nothing")

    def places(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Places:  # noqa: ARG002
        """Where the values go."""
        start = 0
        for codes in self._codes(parts["gaps"].numpy()):
            placing = codes != self._escape
            ends = np.cumsum(codes.astype(np.int64) + placing)
            yield start, ends[placing] - 1
            start += int(ends[-1])

    def fill_(self, out: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Write the tensor into ``out``; the parts have been checked."""
        fill_with_(self.places, out, parts)

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The tensor again, bit for bit. Raises ``BadFile`` on anything that `encode` cannot have written."""
        return decode_with(self, parts, shape)

    @property
    def _escape(self) -> int:
        return (1 << self.bits) - 1

    def _escapes(self, tensor: Tensor) -> int:
        last, escapes = -1, 0
        for start, indices in places_of(bits_of(tensor)):
            if indices.size:
                escapes += int(((np.diff(indices, prepend=last - start) - 1) // self._escape).sum())
                last = int(indices[-1]) + start
        return escapes

    def _code(self, skips: npt.NDArray[Any]) -> Codes:
        """Codes for these runs of zeros."""
        escapes = skips // self._escape
        ends = np.cumsum(escapes + 1)
        codes = np.full(int(ends[-1]), self._escape, np.uint8)
        codes[ends - 1] = (
            skips - escapes * self._escape
        )  # the remainder; numpy divides by a constant fast, `%` it does not
        return codes

    def _outlined(self, tensor: Tensor, nonzeros: int, codes: int, limit: int) -> dict[str, Tensor] | None:
        gaps = torch.empty(-(-codes * self.bits // 8), dtype=torch.uint8, device="meta")
        return below(limit, {"gaps": gaps} | values_like(tensor, nonzeros))

    def _last(self, byte: int) -> int:
        """The last code of a file; the padding of 4-bit codes does not count as one."""
        return byte & 15 if self.bits == 4 and byte >> 4 == self._escape else byte >> (8 - self.bits)

    def _pack(self, written: list[Codes]) -> Codes:
        codes = np.concatenate(written)
        if self.bits == 8:
            return codes
        if codes.size % 2:
            codes = np.append(codes, np.uint8(self._escape))
        packed: Codes = (codes[0::2] | codes[1::2] << 4).astype(np.uint8)
        return packed

    def _codes(self, gaps: Codes) -> Iterator[Codes]:
        """The codes in pieces, without the padding."""
        for start, stop in pieces(gaps.size):
            codes = gaps[start:stop]
            if self.bits == 4:
                codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)
                if stop == gaps.size and codes[-1] == self._escape:
                    codes = codes[:-1]
            yield codes
