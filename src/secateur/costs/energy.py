"""Energy of one inference on a systolic array, in microjoules, by the analytic model of `secateur.energy.systolic` (Yang et al. 2019, ICLR).

No power is measured: the number says what a network would take on the accelerator that the parameters describe, with zeros in weights
skipped. The search of widths takes the energy of a layer as bilinear in them; the narrowed network is then counted, and corrects it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import nn

from secateur.energy.systolic import SystolicArray
from secateur.energy.uses import uses_of
from secateur.pricing import Part, Place

__all__ = ["Energy"]


@final
@dataclass(frozen=True, kw_only=True)
class Energy:
    """Count what moves.

    Args:
        array: the hardware.

    >>> import torch
    >>> Energy().measure([nn.Linear(3, 2)], torch.zeros(5, 3))  # of one example: 6 * 210 + 3 * (6 + 2) + 200 * (3 + 2) pJ
    [0.002284]
    """

    array: SystolicArray = field(default_factory=SystolicArray)
    unit: str = "µJ"
    of_masks: bool = True
    where: str = "by the model of a systolic array that skips zeros, not measured here"

    def measure(self, models: Sequence[nn.Module], example_inputs: Any) -> list[float]:
        """What each takes for one example of the batch.

        Raises:
            WrongModel: a model does not run on the example.
        """
        return [sum(map(self.array.energy, uses_of(model, example_inputs))) / 1e6 for model in models]

    def parts(self, model: nn.Module, example_inputs: Any) -> tuple[Part, ...]:
        """For every call of a layer: what follows its weights, its inputs, its outputs."""
        parts = []
        for use in uses_of(model, example_inputs):
            rows: Place = (use.name, use.out_dim)
            columns: Place = (use.name, use.in_dim)
            area = (rows, columns) if rows != columns else (rows,)
            both, into, out = self.array.of_inputs(use)
            amounts = ((self.array.of_weights(use) + both, area), (into, (columns,)), (out, (rows,)))
            parts += [Part(amount / 1e6, places) for amount, places in amounts]
        return tuple(parts)

    def of_nonzeros(self, model: nn.Module, example_inputs: Any) -> float:
        """The same: the array skips zeros."""
        return self.measure([model], example_inputs)[0]

    def of_weights(
        self, model: nn.Module, example_inputs: Any
    ) -> tuple[float, dict[str, tuple[tuple[float, float], ...]]]:
        """What is spent whatever the weights are, and what weights cost: by name, ``(how many, each)``, the cheap ones first."""
        fixed, slopes, found = 0.0, dict[str, list[float]](), dict[str, tuple[tuple[float, float], ...]]()
        for use in uses_of(model, example_inputs):
            fixed += sum(self.array.of_inputs(use)) / 1e6
            near, far = self.array.slopes(use)
            seen = slopes.setdefault(use.name, [0.0, 0.0])
            seen[0], seen[1] = seen[0] + near / 1e6, seen[1] + far / 1e6
        for name, (near, far) in slopes.items():
            found[name] = ((float(self.array.weight_cache), near), (float("inf"), far))
        return fixed, found
