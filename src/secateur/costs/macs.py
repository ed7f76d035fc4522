"""Multiply-accumulates of one forward pass on the example, counted as they run (see `secateur.profiling.macs`).

A layer's share follows the size of its weight: MACs = places * weights. What has no weight of its own, such as the products of
attention, follows the rest; the count of the narrowed model then corrects the prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from secateur.examples import Example, device_of, leaving_no_trace, run
from secateur.pricing import Part
from secateur.profiling.macs import Macs as Counted
from secateur.profiling.macs import count_macs, macs_by_weight

__all__ = ["Macs"]


@final
@dataclass(frozen=True, kw_only=True)
class Macs:
    """Count multiply-accumulates.

    >>> import torch
    >>> Macs().measure([nn.Linear(3, 2)], torch.zeros(5, 3))
    [30.0]
    """

    unit: str = ""
    of_masks: bool = False
    where: str = (
        "counted without those of zeros, which the sparse engine skips (`sc.compile`) and dense runtimes do not"
    )

    def measure(self, models: Sequence[nn.Module], example_inputs: Any) -> list[float]:
        """Run each model on the example and count.

        Raises:
            WrongModel: a model does not run on the example.
        """
        return [float(sum(_counted(model, example_inputs).total.values())) for model in models]

    def parts(self, model: nn.Module, example_inputs: Any) -> tuple[Part, ...]:
        """A part for every weight of two dimensions or more, in layers that multiply."""
        shares = macs_by_weight(_counted(model, example_inputs), model)
        return tuple(
            Part(macs, tuple((name, dim) for dim in range(model.get_parameter(name).dim())))
            for name, macs in shares.items()
        )

    def of_nonzeros(self, model: nn.Module, example_inputs: Any) -> float:
        """Run the model and count those with a weight that is not zero."""
        return float(sum(_counted(model, example_inputs).nonzero.values()))

    def of_weights(
        self, model: nn.Module, example_inputs: Any
    ) -> tuple[float, dict[str, tuple[tuple[float, float], ...]]]:
        """What is spent without weights (the products of attention, say), and what each weight costs, by name."""
        found, sizes = _counted(model, example_inputs), {name: p.numel() for name, p in model.named_parameters()}
        prices: dict[str, tuple[tuple[float, float], ...]] = {
            name: ((float("inf"), macs / sizes[name]),) for name, macs in found.by_weight.items()
        }
        return float(sum(found.total.values()) - sum(found.by_weight.values())), prices


def _counted(model: nn.Module, example_inputs: Any) -> Counted:
    example = Example.of(example_inputs, device_of(model))
    with leaving_no_trace(model):
        found: Counted = run(model, example, lambda: count_macs(model, *example))
    return found
