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
from secateur.graphs import copied, following
from secateur.structure import Structure

__all__ = ["Failure", "try_structure"]


class Failure:
    """Where a trial stopped and why."""

    def __init__(self, path: str, error: Exception) -> None:
        self.path, self.error = path, error


def try_structure(model: nn.Module, example_inputs: Any, structure: Structure) -> Failure | None:
    """Cut a copy to ``structure`` and run it; None if it runs."""
    failure = _try_without_data(model, example_inputs, structure)
    if failure is None:
        return None
    if _try_without_data(model, example_inputs, Structure()) is None:
        return failure
    return _try_with_data(model, example_inputs, structure)  # this network needs values to run at all


def _try_without_data(model: nn.Module, example_inputs: Any, structure: Structure) -> Failure | None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    thin = _fake_copy(model, mode).eval()
    with _quiet(), mode:
        cut_(thin, structure)
        return _attempt(thin, tree_map_only(Tensor, mode.from_tensor, example_inputs))


def _try_with_data(model: nn.Module, example_inputs: Any, structure: Structure) -> Failure | None:
    thin = copied(model).eval()
    cut_(thin, structure)
    with _quiet():
        return _attempt(thin, example_inputs)


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
