"""One architecture to check: the model, inputs to couple with, inputs to compare on, and a training step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.coupling.running import tensors_of


@dataclass(frozen=True)
class Case:
    """A model in eval mode with what it takes to run it."""

    model: nn.Module
    example: Any
    fresh: Any
    loss: Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Entry:
    """How to make a case. ``make`` builds the model; ``inputs`` draws its inputs anew at each call."""

    family: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    loss: Callable[[nn.Module, Any], Tensor] | None = None

    def build(self, seed: int) -> Case:
        """The model from ``seed``; inputs do not depend on it."""
        torch.manual_seed(seed)
        model = self.make().eval()
        randomise_(model)
        torch.manual_seed(1234)
        example, fresh, step = self.inputs(), self.inputs(), self.loss or mean_square
        return Case(model, example, fresh, lambda other: step(other, fresh))


def randomise_(model: nn.Module) -> None:
    """Draw what initialisation leaves constant (statistics, scales, gains of zero), or a wrong cut would go unseen."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() and parameter.min() == parameter.max():
                if float(parameter.reshape(-1)[0]) == 0:
                    parameter.normal_(0, 0.05)
                else:
                    parameter.uniform_(0.5, 1.5)


def mean_square(model: nn.Module, inputs: Any) -> Tensor:
    """A loss that every floating output takes part in."""
    outputs = [t for t in tensors_of(call(model, inputs)) if t.is_floating_point() and t.requires_grad]
    return torch.stack([t[torch.isfinite(t)].square().mean() for t in outputs]).sum()


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, a tuple or a dict."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
