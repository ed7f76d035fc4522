"""Bytes of the file that `secateur.save` writes: every tensor in its smallest format, with the header.

Of a narrowed model the receipt and the list of its masks count too, since ``save(pruned)`` writes them into the header. They are not
there yet while widths are sought, so they are estimated, rather a little too long: names and a row of numbers for each layer, twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from secateur.narrowing.narrow import structure_of
from secateur.packing.pack import packed_nbytes
from secateur.pricing import Part

__all__ = ["Bytes"]

_RECEIPT = 1500  # what every receipt says: method, notes, totals, latencies
_ROW = 60  # shape and counts of a layer, as text
_GROUP = 30  # a group of channels; not more of them than layers
_MASK = 18  # where the mask of a parameter is found


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
    if structure is None:
        return packed_nbytes(state, model=type(model).__name__)
    weights = packed_nbytes(state, model=type(model).__name__, structure=structure.to_dict())
    return weights + _beside_nbytes(model)


def _beside_nbytes(model: nn.Module) -> int:
    names = [name for name, _ in model.named_parameters()]
    layers = [(n, type(m).__name__) for n, m in model.named_modules() if [*m.parameters(recurse=False)]]
    rows = 2 * sum(len(name) + len(kind) + _ROW for name, kind in layers) + sum(
        len(name) + _GROUP for name, _ in layers
    )
    return _RECEIPT + rows + sum(len(name) + _MASK for name in names)
