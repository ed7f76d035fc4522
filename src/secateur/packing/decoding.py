"""What every sparse format does in the same way: look after its values, and put them back."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from secateur.errors import BadFile
from secateur.packing.bits import Places, count_nonzero, scatter_

__all__ = ["Codec", "below", "check_values", "decode_with", "fill_with_", "stored_count", "values_like"]

PlacesOf = Callable[[Mapping[str, Tensor], tuple[int, ...]], Places]


class Codec(Protocol):
    """A `secateur.protocols.Format` that also knows its size beforehand and checks before anything is allocated."""

    passes: ClassVar[int]
    """How many looks at the tensor `outline` takes, about; the cheap ones are asked first."""
    parts: ClassVar[tuple[str, ...]]
    """The names of the parts; ``values`` is missing for bools."""

    def outline(self, tensor: Tensor, nonzeros: int, limit: int) -> dict[str, Tensor] | None:
        """What `encode` would give, on the meta device; ``None`` where it cannot or takes ``limit`` bytes or more."""

    def encode(self, tensor: Tensor) -> dict[str, Tensor] | None:
        """The parts, or ``None`` where this format cannot hold the tensor."""

    def check(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Raise ``BadFile`` on parts that `encode` cannot have written; allocates no more than a few pieces."""

    def fill_(self, out: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Write the tensor into ``out`` (contiguous, on the CPU, of the values' type); the parts have been checked."""

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The tensor again, bit for bit, after `check`."""


def below(limit: int, outline: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The outline, if it takes fewer than ``limit`` bytes."""
    return outline if sum(part.nbytes for part in outline.values()) < limit else None


def values_like(tensor: Tensor, count: int) -> dict[str, Tensor]:
    """The outline of ``values``: none for bools, where stored means ``True``."""
    return {} if tensor.dtype == torch.bool else {"values": torch.empty(count, dtype=tensor.dtype, device="meta")}


def stored_count(parts: Mapping[str, Tensor]) -> int | None:
    """How many weights are stored; ``None`` for bools, whose positions say it."""
    return parts["values"].numel() if "values" in parts else None


def check_values(parts: Mapping[str, Tensor], *, zeros: bool = False) -> None:
    """Refuse values that are not a list, are bools, or hold zeros where the format stores none.

    Raises:
        BadFile: saying which.
    """
    values = parts.get("values")
    if values is None:
        return
    if values.dim() != 1 or values.dtype == torch.bool:
        raise BadFile(f"the values should be a list of numbers and are {values.dtype} of shape {list(values.shape)}")
    if not zeros and count_nonzero(values) != values.numel():
        raise BadFile(f"{values.numel() - count_nonzero(values)} of {values.numel()} stored values are zero")


def fill_with_(places: PlacesOf, out: Tensor, parts: Mapping[str, Tensor]) -> None:
    """Write the values to their places, and zero everywhere else."""
    scatter_(out, places(parts, tuple(out.shape)), parts.get("values"))


def decode_with(codec: Any, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Check the parts, then make the tensor.

    Raises:
        BadFile: see the format's ``check``.
    """
    codec.check(parts, shape)
    values = parts.get("values")
    out = torch.empty(shape, dtype=torch.bool if values is None else values.dtype)
    scatter_(out, codec.places(parts, shape), values)
    return out
