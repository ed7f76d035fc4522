"""Movement: keep the weights that move away from zero while the model trains.

    score(w) = - sum over steps of  g_t * w_t            (Sanh et al. 2020, eq. 3)

Gathered during training; `Gradual` takes it as a criterion. Larger means moving away from zero; scores can be negative.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.protocols import Targets
from secateur.scores import Scores

__all__ = ["Movement", "MovementTracker"]


@final
@dataclass(frozen=True, kw_only=True)
class Movement:
    """Score by accumulated movement. Only to be had in training, through a method such as `Gradual`."""

    def track(self, model: nn.Module, targets: Targets) -> "MovementTracker":
        """Begin to gather evidence."""
        return MovementTracker(model, targets)


class MovementTracker:
    """The running sum of ``-g * w``."""

    def __init__(self, model: nn.Module, targets: Targets) -> None:
        self._targets = targets
        self._sums = {name: _zeros(model.get_parameter(name)) for name in targets}

    @torch.no_grad()
    def observe(self, model: nn.Module) -> None:
        """Add this step's movement; weights without a gradient have not moved."""
        for name, total in self._sums.items():
            parameter = model.get_parameter(name)
            if parameter.grad is not None:
                gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
                total.addcmul_(parameter.to(total.dtype), gradient.to(total.dtype), value=-1)

    def scores(self) -> Scores:
        """The evidence so far."""
        return Scores(self._sums, facts=self._targets)

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {"sums": {name: total.clone() for name, total in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the sums up again."""
        for name, total in state["sums"].items():
            self._sums[name].copy_(total)


def _zeros(like: Tensor) -> Tensor:
    """Room for a sum; for halves in float32, or thousands of small steps would be lost to rounding."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
