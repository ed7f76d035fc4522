"""N:M: at most N of every M weights along one axis; which ones is a number below C(M, N).

    ranks   uint16 [ceil(groups / r)]   r ranks in base C = C(M, N), the first lowest; r is the most that fit 16 bits
    values  [groups N]                  exactly N weights a group, in row-major order of the tensor

The axis of size ``g M`` is cut into g groups. With ``before`` the product of the sizes left of the axis and ``after`` the product of those right of it, groups are
numbered in the order of ``[before, g, after]``. The rank of a group is the rank of its M-bit pattern (bit j: member j is stored) among all patterns with N bits,
in increasing order. A group with fewer than N non-zeros also stores zeros, the earliest ones.

Size: ``2 ceil(groups / r) + groups N b`` bytes: 2:4 takes 0.67 bits a weight for the positions where a bitmask takes 1.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import comb, prod
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.errors import BadFile
from secateur.packing.bits import Mask, Places, bits_of, check_part, gather, pieces, to_bitmap
from secateur.packing.decoding import below, check_values, decode_with, fill_with_, stored_count, values_like

__all__ = ["NOfM"]

Patterns = npt.NDArray[np.uint16]
_NO_RANK = 65535


@final
@dataclass(frozen=True, kw_only=True)
class NOfM:
    """N of M along ``axis``.

    >>> parts = NOfM(n=1, m=4).encode(torch.tensor([[0.0, 7.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0]]))
    >>> parts["ranks"].tolist(), parts["values"].tolist()  # base 4: 1 + 3 * 4
    ([13], [7.0, 5.0])
    """

    passes: ClassVar[int] = 2
    parts: ClassVar[tuple[str, ...]] = ("ranks", "values")
    n: int = 2
    m: int = 4
    axis: int = 1

    def __post_init__(self) -> None:
        if self.m not in (2, 4, 8, 16) or not 0 < self.n < self.m or self.axis not in (0, 1):
            raise BadFile(
                f"{self.n}:{self.m} along axis {self.axis} is not stored; M is 2, 4, 8 or 16 and the axis 0 or 1"
            )

    @classmethod
    def variants(cls, shape: tuple[int, ...]) -> tuple["NOfM", ...]:
        """What is worth trying for a tensor of this shape."""
        known = ((2, 4), (1, 2), (1, 4), (1, 8), (2, 8), (1, 16), (2, 16))
        tried = (cls(n=n, m=m, axis=axis) for n, m in known for axis in (1, 0))
        return tuple(one for one in tried if len(shape) > 1 and shape[one.axis] % one.m == 0)

    def outline(self, tensor: Tensor, nonzeros: int, limit: int) -> dict[str, Tensor] | None:
        """What `encode` gives, on the meta device; ``None`` where a group has more than N or it is not below ``limit``."""
        if not self._holds(tensor) or nonzeros * self.m > tensor.numel() * self.n:
            return None
        groups = tensor.numel() // self.m
        ranks = torch.empty(-(-groups // self.per_word), dtype=torch.uint16, device="meta")
        outline = below(limit, {"ranks": ranks} | values_like(tensor, groups * self.n))
        fits = outline and all(found.max(initial=0) < _NO_RANK for _, found in self._ranked(tensor))
        return outline if fits else None

    def encode(self, tensor: Tensor) -> dict[str, Tensor] | None:
        """Ranks and values; ``None`` where a group has more than N non-zeros or the axis does not divide."""
        if not self._holds(tensor):
            return None
        groups = tensor.numel() // self.m
        ranks = np.zeros(-(-groups // self.per_word) * self.per_word, np.uint16)
        for start, found in self._ranked(tensor):
            if found.max(initial=0) == _NO_RANK:
                return None
            ranks[start : start + found.size] = found
        parts = {"ranks": torch.from_numpy(self._words(ranks.reshape(-1, self.per_word)))}
        return parts | gather(tensor, self.places(parts, tuple(tensor.shape)), groups * self.n)

    def check(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise ``BadFile`` on parts that `encode` cannot have written."""
        if not self._divides(shape):
            raise BadFile(
                f"a tensor of shape {list(shape)} does not divide into {self.n}:{self.m} along axis {self.axis}"
            )
        check_values(parts, zeros=True)
        groups, stored = prod(shape) // self.m, stored_count(parts)
        check_part(parts["ranks"], torch.uint16, -(-groups // self.per_word), what="the ranks")
        if stored != groups * self.n:
            raise BadFile(f"{groups} groups of {self.n}:{self.m} store {groups * self.n} values, not {stored}")
        words = parts["ranks"].numpy()
        if words.max(initial=0) >= self._base**self.per_word:
            raise BadFile(f"a word of ranks is {words.max()}, but only numbers below {self._base**self.per_word} occur")
        if groups % self.per_word and int(words[-1]) >= self._base ** (groups % self.per_word):
            raise BadFile("there are ranks after the last group")

    def places(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Places:
        """Where the values go; pieces of whole stretches ``[M, after]``."""
        after, words = prod(shape[self.axis + 1 :]), parts["ranks"].numpy()
        members, word = _members(self.n, self.m), self.per_word * self.m  # weights per word
        for start, stop in pieces(prod(shape), self.m * after):
            first = start // word
            stored = np.take(members, words[first : -(-stop // word)], axis=0).reshape(-1)[start - first * word :]
            stored = stored[: stop - start]
            if after > 1:
                stored = stored.reshape(-1, after, self.m).transpose(0, 2, 1).reshape(-1)
            yield start, np.flatnonzero(stored)

    def fill_(self, out: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Write the tensor into ``out``; the parts have been checked."""
        fill_with_(self.places, out, parts)

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The tensor again, bit for bit. Raises ``BadFile`` on anything that `encode` cannot have written."""
        return decode_with(self, parts, shape)

    def _holds(self, tensor: Tensor) -> bool:
        return tensor.dtype != torch.bool and self._divides(tuple(tensor.shape))  # a stored bool would be True

    def _divides(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > self.axis and prod(shape) > 0 and shape[self.axis] % self.m == 0

    def _ranked(self, tensor: Tensor) -> Iterator[tuple[int, Patterns]]:
        """``(first group, ranks)``; `_NO_RANK` where a group has more than N non-zeros."""
        bits, after = bits_of(tensor), prod(tensor.shape[self.axis + 1 :])
        for start, stop in pieces(bits.size, self.m * after):
            mask = bits[start:stop] != 0
            if after > 1:
                mask = mask.reshape(-1, self.m, after).transpose(0, 2, 1).reshape(-1)
            yield start // self.m, _ranks(self.n, self.m)[self._patterns(mask)]

    def _patterns(self, mask: Mask) -> Patterns:
        """Every M decisions as one number, the first in the lowest bit."""
        packed = to_bitmap(mask)
        if self.m == 16:
            return np.asarray(packed.view("<u2"), np.uint16)
        shifts = np.arange(0, 8, self.m, dtype=np.uint8)
        patterns = (packed[:, None] >> shifts & (1 << self.m) - 1).reshape(-1)[: mask.size // self.m]
        return patterns.astype(np.uint16)

    def _words(self, ranks: Patterns) -> Patterns:
        words = ranks[:, -1].copy()
        for place in range(self.per_word - 2, -1, -1):
            words *= np.uint16(self._base)
            words += ranks[:, place]
        return words

    @property
    def _base(self) -> int:
        return comb(self.m, self.n)

    @property
    def per_word(self) -> int:
        """How many ranks fit 16 bits."""
        return next(r for r in range(16, 0, -1) if self._base**r <= 1 << 16)


@cache
def _known(n: int, m: int) -> Patterns:
    """The pattern of every rank: all numbers of M bits with N of them set, in increasing order."""
    return np.array([pattern for pattern in range(1 << m) if pattern.bit_count() == n], np.uint16)


@cache
def _ranks(n: int, m: int) -> Patterns:
    """The rank of every pattern, after it was filled up to N members with the lowest free ones."""
    members = np.array([pattern.bit_count() for pattern in range(1 << m)])
    filled = np.arange(1 << m, dtype=np.uint32)
    for missing in range(n, 0, -1):
        short = members <= n - missing
        filled[short] |= ~filled[short] & (filled[short] + 1)
    ranks = np.searchsorted(_known(n, m), filled)
    return np.where(members <= n, ranks, _NO_RANK).astype(np.uint16)


@cache
def _members(n: int, m: int) -> Mask:
    """For every word, which of its weights are stored: ``[base ** r, r M]``, at most a few megabytes."""
    r, base = NOfM(n=n, m=m).per_word, comb(m, n)
    bits = np.unpackbits(_known(n, m).astype("<u2").view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")[:, :m]
    words = np.arange(base**r)
    each = [bits[words // base**place % base] for place in range(r)]
    return np.concatenate(each, axis=1).view(np.bool_)
