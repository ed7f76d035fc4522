"""How steep the loss is in every weight, from the gradients of the training itself: a running mean of their squares.

F <- decay * F + (1 - decay) * g^2          the diagonal of the empirical Fisher information; F w^2 / 2 is what a weight's removal costs (OBD)
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Curvature"]


class Curvature:
    """Listens to an optimizer's steps.

    Args:
        model: in training.
        optimizer: its optimizer.
        names: the parameters to watch.
        decay: of the running mean.
    """

    def __init__(self, model: nn.Module, optimizer: Any, names: Iterable[str], *, decay: float = 0.95) -> None:
        self._parameters = {name: model.get_parameter(name) for name in names}
        self.decay, self.seen = decay, 0
        self.squares = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self._parameters.items()}
        self._hook = optimizer.register_step_pre_hook(self._observe)

    def damage(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``F w^2``, or ``w^2`` as long as no gradient was seen."""
        if not self.seen:
            return {name: w.double().square() for name, w in weights.items()}
        return {name: w.double().square() * self.squares[name].double() for name, w in weights.items()}

    def release(self) -> None:
        """Stop listening."""
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {"seen": self.seen, "squares": dict(self.squares)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off."""
        self.seen = int(state["seen"])
        self.squares = {name: state["squares"][name].to(s.device).clone() for name, s in self.squares.items()}

    @torch.no_grad()
    def _observe(self, *_: object) -> None:
        self.seen += 1
        share = max(1 - self.decay, 1 / self.seen)
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self.squares[name].lerp_(parameter.grad.detach().float().square(), share)
