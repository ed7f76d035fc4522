"""Listening: some steps of a training are spent on scores instead of on weights.

While it listens all units are awake, what the gradients say about each goes into a mean of absolute values over the steps, and the
optimizer finds no gradients, so that it moves nothing. Afterwards buffers (batch-norm statistics) are put back: nothing stays but the scores.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import BadScores
from secateur.training.attached import closure_in, with_closure
from secateur.training.sleeping import Sleep

__all__ = ["Ear"]


class Ear:
    """Gathers ``|dL/dg|`` of every unit while it is open.

    Args:
        model: the module in training.
        sleep: its sleeping units, which are woken to be heard.
        optimizer: its optimizer.
    """

    def __init__(self, model: nn.Module, sleep: Sleep, optimizer: Any) -> None:
        self._model, self._sleep = model, sleep
        self._sums: dict[str, Tensor] = {}
        self._heard = 0
        self._buffers: dict[str, Tensor] | None = None  # while it is open
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._buffers is not None

    def open(self) -> None:
        """Wake all units and listen from the next step on."""
        self._sleep.wake()
        self._buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        self._sums, self._heard = {key: torch.zeros(len(keep)) for key, keep in self._sleep.keep.items()}, 0

    @torch.no_grad()
    def close(self) -> dict[str, Tensor]:
        """Stop listening; the mean over the steps, ``[units]`` by group.

        Raises:
            BadScores: no gradient arrived.
        """
        if not self._heard:
            raise BadScores(
                "no gradient arrived while all units were in to be scored: call run.step() once after every optimizer.step(), and "
                "optimizer.zero_grad() before backward(), not between backward() and step()"
            )
        for name, buffer in self._model.named_buffers():
            buffer.copy_((self._buffers or {}).get(name, buffer))
        self._buffers = None
        return {key: total / self._heard for key, total in self._sums.items()}

    def release(self) -> None:
        """Let go of the optimizer."""
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """What was heard so far, and the buffers to be put back."""
        buffers = None if self._buffers is None else {name: b.clone() for name, b in self._buffers.items()}
        return {"sums": {k: t.clone() for k, t in self._sums.items()}, "heard": self._heard, "buffers": buffers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off."""
        self._sums, self._heard = {key: total.clone() for key, total in state["sums"].items()}, int(state["heard"])
        buffers, own = state["buffers"], dict(self._model.named_buffers())
        self._buffers = None if buffers is None else {n: b.clone().to(own[n].device) for n, b in buffers.items()}

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.is_open:
            return None
        closure = closure_in(args, kwargs)
        if closure is None:
            self._listen(optimizer)
            return None

        def heard() -> Any:  # the gradients come inside the step
            result = closure()
            self._listen(optimizer)
            return result

        return with_closure(args, kwargs, heard)

    def _listen(self, optimizer: Any) -> None:
        evidence = self._sleep.evidence()
        if evidence:
            self._heard += 1
            for key, value in evidence.items():
                self._sums[key] += value.abs()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
