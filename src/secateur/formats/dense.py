"""Dense: every weight as it is. One part, ``data``; it is the only format that a plain safetensors reader understands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from secateur.errors import BadFile
from secateur.packing.bits import bits_of
from secateur.packing.decoding import below

__all__ = ["Dense"]


@final
@dataclass(frozen=True, kw_only=True)
class Dense:
    """``n`` values: ``n b`` bytes."""

    passes: ClassVar[int] = 0
    parts: ClassVar[tuple[str, ...]] = ("data",)

    def outline(self, tensor: Tensor, nonzeros: int, limit: int) -> dict[str, Tensor] | None:  # noqa: ARG002
        """What `encode` gives, on the meta device; ``None`` where it takes ``limit`` bytes or more."""
        return below(limit, {"data": torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")})

    def encode(self, tensor: Tensor) -> dict[str, Tensor]:
        """The tensor itself; no copy where it is contiguous and on the CPU."""
        return {"data": tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()}

    def check(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise ``BadFile`` on parts that `encode` cannot have written."""
        data = parts["data"]
        if tuple(data.shape) != shape:
            raise BadFile(f"the data have shape {list(data.shape)} and the description says {list(shape)}")
        if data.dtype == torch.bool and data.numel() and int(bits_of(data).max()) > 1:
            raise BadFile("a bool is stored as a byte other than 0 and 1")

    def fill_(self, out: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Write the tensor into ``out``; the parts have been checked."""
        out.copy_(parts["data"])

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The tensor again, bit for bit. Raises ``BadFile`` on anything that `encode` cannot have written."""
        self.check(parts, shape)
        return parts["data"].clone()
