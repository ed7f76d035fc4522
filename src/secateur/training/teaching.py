"""Distillation for methods that add to the loss: what the model has just computed is compared with what it computed when it was dense.

    penalty += weight * T^2 * KL( softmax(dense / T) || softmax(now / T) )          (Hinton, Vinyals & Dean 2015; see `secateur.training.distilling`)

The model's own forward pass is heard by a hook, so the user's loop stays as it is.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import BadSchedule, WrongModel
from secateur.gradients import evaluating
from secateur.training.distilling import soft_distance

__all__ = ["Teaching"]


class Teaching:
    """The dense model as a teacher of the one in training.

    Args:
        model: in training; copied as it is now.
        weight: how much the teacher counts beside the loss; 0 hears nothing and costs nothing.
        temperature: T; None compares outputs by their mean squared difference.
    """

    def __init__(self, model: nn.Module, weight: float, temperature: float | None = 4.0) -> None:
        if not weight >= 0 or (temperature is not None and not temperature > 0):
            raise BadSchedule(f"distill={weight} must be 0 (no teacher) or more, and temperature={temperature} above 0")
        self.weight, self.temperature = weight, temperature
        self._teacher: nn.Module | None = None
        self._heard: tuple[Any, Any, Any] | None = None
        self._hook: Any = None
        if weight > 0:
            self._teacher = copy.deepcopy(model).requires_grad_(False).eval()
            self._hook = model.register_forward_hook(self._hear, with_kwargs=True)

    def term(self) -> Tensor:
        """The term for the last forward pass; zero without a teacher.

        Raises:
            WrongModel: the model was not called before.
        """
        if self._teacher is None:
            return torch.zeros(())
        if self._heard is None:
            raise WrongModel("distill= compares what the model computes: call the model first, then run.penalty()")
        (args, kwargs, out), self._heard = self._heard, None
        with torch.no_grad(), evaluating(self._teacher):
            taught = self._teacher(*args, **kwargs)
        return self.weight * soft_distance(out, taught, self.temperature, -1)

    def release(self) -> None:
        """Stop listening."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """The teacher's weights."""
        return {} if self._teacher is None else {"teacher": self._teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The dense weights of the first start, not those of the restart."""
        if self._teacher is not None and "teacher" in state:
            self._teacher.load_state_dict(state["teacher"])

    def _hear(self, _: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if torch.is_grad_enabled():
            self._heard = (args, kwargs, out)
