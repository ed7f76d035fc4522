"""Bytes of the file that `secateur.save` writes for the weights: every tensor in its smallest format, with the header."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from secateur.narrowing import structure_of
from secateur.packing import packed_nbytes
from secateur.pricing import Part

__all__ = ["Bytes"]


@final
@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Measure the file without writing it."""

    unit: str = "bytes"

    def measure(self, models: Sequence[nn.Module], example_inputs: Any) -> list[float]:  # noqa: ARG002
        """The size of each model's file."""
        return [float(_file_nbytes(model)) for model in models]

    def parts(self, model: nn.Module, example_inputs: Any) -> tuple[Part, ...]:  # noqa: ARG002
        """A part for every tensor; the header does not shrink."""
        tensors = [*model.named_parameters(), *model.named_buffers()]
        parts = [
            Part(t.numel() * t.element_size(), tuple((name, dim) for dim in range(t.dim()))) for name, t in tensors
        ]
        whole = self.measure([model], None)[0]
        return (*parts, Part(max(0.0, whole - sum(part.amount for part in parts))))


def _file_nbytes(model: nn.Module) -> int:
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    structure = structure_of(model)
    return packed_nbytes(state, model=type(model).__name__, structure=structure.to_dict() if structure else None)
