"""Try a structure on a copy without data: cheap, and it runs the user's own code.

A ``forward`` can hold sizes that no attribute gives: ``C // num_heads`` of the input's shape, a literal, a shared config.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from secateur.coupling.running import run
from secateur.cutting import cut_
from secateur.examples import plain_attention
from secateur.graphs import copied, following
from secateur.structure import Structure

__all__ = ["Failure", "Trial"]


class Failure:
    """Where a trial stopped and why."""

    def __init__(self, path: str, error: Exception) -> None:
        self.path, self.error = path, error


class Trial:
    """Tries structures on copies of one model; remembers whether that model needs values to run at all."""

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self.model, self.example_inputs = model, example_inputs
        self._needs_values: bool | None = None

    def __call__(self, structure: Structure) -> Failure | None:
        """Cut a copy to ``structure`` and run it; None if it runs."""
        with plain_attention():
            if not self._needs_values:
                failure = self._without_data(structure)
                if failure is None:
                    return None
                if self._needs_values is None:
                    self._needs_values = self._without_data(Structure()) is not None
                if not self._needs_values:
                    return failure
            return self._with_data(structure)

    def _without_data(self, structure: Structure) -> Failure | None:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        thin = _fake_copy(self.model, mode).eval()
        with _quiet(), mode:
            cut_(thin, structure)
            return _attempt(thin, tree_map_only(Tensor, mode.from_tensor, self.example_inputs))

    def _with_data(self, structure: Structure) -> Failure | None:
        thin = copied(self.model).eval()
        cut_(thin, structure)
        with _quiet():
            return _attempt(thin, self.example_inputs)


def _attempt(model: nn.Module, example_inputs: Any) -> Failure | None:
    stack: list[str] = []
    with torch.no_grad(), _following(model, stack):
        try:
            run(model, example_inputs)
        except Exception as error:  # noqa: BLE001 - whatever the user's forward raises is the finding
            return Failure(stack[-1] if stack else "", error)
    return None


def _fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of the module tree whose tensors have shapes but no data."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(mode.from_tensor(parameter.detach()), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = mode.from_tensor(buffer)
    return copied(model, memo)


@contextmanager
def _following(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the path of the innermost running module in ``stack``; it stays there when that module raises."""
    names = {module: path for path, module in model.named_modules()}

    def leave(*_: object) -> None:
        stack.pop()

    handles = [
        nn.modules.module.register_module_forward_pre_hook(lambda m, _: stack.append(names.get(m, ""))),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        with following(model, stack):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)  # failures are findings here, not news
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the user's own run says them again; as errors they would count as failures
            yield
    finally:
        log.setLevel(level)
