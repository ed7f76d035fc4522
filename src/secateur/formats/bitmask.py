"""Bitmask: one bit a weight says whether it is stored. The best format between about 5 % and 76 % sparsity.

    mask    uint8 [ceil(n / 8)]    bit i % 8 of byte i // 8 is set where weight i is stored
    values  [k]                    the stored weights

Size: ``ceil(n / 8) + k b`` bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from secateur.packing.bits import Places, bits_of, check_bitmap, count_nonzero, gather, pieces, places_of, to_bitmap
from secateur.packing.decoding import below, check_values, decode_with, fill_with_, stored_count, values_like

__all__ = ["Bitmask"]


@final
@dataclass(frozen=True, kw_only=True)
class Bitmask:
    """A bit a weight, then the values.

    >>> {name: part.tolist() for name, part in Bitmask().encode(torch.tensor([0.0, 7.0, 0.0, 5.0])).items()}
    {'mask': [10], 'values': [7.0, 5.0]}
    """

    passes: ClassVar[int] = 0
    parts: ClassVar[tuple[str, ...]] = ("mask", "values")

    def outline(self, tensor: Tensor, nonzeros: int, limit: int) -> dict[str, Tensor] | None:
        """What `encode` gives, on the meta device; ``None`` where it takes ``limit`` bytes or more."""
        mask = torch.empty(-(-tensor.numel() // 8), dtype=torch.uint8, device="meta")
        return below(limit, {"mask": mask} | values_like(tensor, nonzeros))

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """The bits and the values that are not zero."""
        bits = bits_of(tensor)
        mask = np.empty(-(-bits.size // 8), np.uint8)
        for start, stop in pieces(bits.size, 8):
            mask[start // 8 : -(-stop // 8)] = to_bitmap(bits[start:stop] != 0)
        return {"mask": torch.from_numpy(mask)} | gather(tensor, places_of(bits), count_nonzero(tensor))

    def check(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise ``BadFile`` on parts that `encode` cannot have written."""
        check_values(parts)
        check_bitmap(parts["mask"], prod(shape), stored_count(parts), what="the mask")

    def places(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Places:
        """Where the values go."""
        mask, count = parts["mask"].numpy(), prod(shape)
        for start, stop in pieces(count, 8):
            bits = np.unpackbits(mask[start // 8 : -(-stop // 8)], bitorder="little")
            yield start, np.flatnonzero(bits.view(np.bool_))

    def fill_(self, out: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Write the tensor into ``out``; the parts have been checked."""
        fill_with_(self.places, out, parts)

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The tensor again, bit for bit. Raises ``BadFile`` on anything that `encode` cannot have written."""
        return decode_with(self, parts, shape)
