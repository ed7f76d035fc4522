"""Parameters: how many numbers the network learns. Tied weights count once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, final

from torch import nn

from secateur.pricing import Part
from secateur.profiling.macs import count_nonzeros

__all__ = ["Params"]


@final
@dataclass(frozen=True, kw_only=True)
class Params:
    """Count parameters; the prediction is exact.

    >>> Params().measure([nn.Linear(3, 2)], None)
    [8.0]
    """

    unit: str = ""
    of_masks: bool = False
    where: str = "counted without zeros, which `sc.save` packs; a plain file keeps them"

    def measure(self, models: Sequence[nn.Module], example_inputs: Any) -> list[float]:  # noqa: ARG002
        """How many parameters each model has."""
        return [float(sum(p.numel() for p in model.parameters())) for model in models]

    def parts(self, model: nn.Module, example_inputs: Any) -> tuple[Part, ...]:  # noqa: ARG002
        """A part for every parameter."""
        return tuple(
            Part(prod(p.shape), tuple((name, dim) for dim in range(p.dim()))) for name, p in model.named_parameters()
        )

    def of_nonzeros(self, model: nn.Module, example_inputs: Any) -> float:  # noqa: ARG002
        """How many parameters are not zero."""
        return float(sum(count_nonzeros(p) for p in model.parameters()))

    def of_weights(
        self,
        model: nn.Module,
        example_inputs: Any,  # noqa: ARG002
    ) -> tuple[float, dict[str, tuple[tuple[float, float], ...]]]:
        """Every weight costs one, whatever it does."""
        return 0.0, {name: ((float("inf"), 1.0),) for name, _ in model.named_parameters()}
