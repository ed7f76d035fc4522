"""Gradients of a task's loss, batch by batch, leaving the model as it was: mode, ``.grad`` and ``requires_grad`` included."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.errors import NeedsTask
from secateur.task import Task

__all__ = ["batch_gradients", "evaluating", "mean_gradients"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode for a while; each module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def batch_gradients(model: nn.Module, names: Iterable[str], task: Task | None, who: str) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of the mean loss with respect to ``names``, one dictionary a batch; in eval mode.

    A parameter that the loss does not reach has gradient zero.

    Raises:
        NeedsTask: there is no task, no loss or no batch.
    """
    if task is None:
        raise NeedsTask(f"{who} needs data: pass task=sc.Task(batches, loss=lambda model, batch: ...)")
    loss, parameters = task.needs_loss(who), dict(model.named_parameters())
    chosen = {name: parameters[name] for name in names}
    frozen = [p for p in chosen.values() if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for batch in task.each_batch(who):
            with evaluating(model), torch.enable_grad():
                value = loss(model, batch)
                found = torch.autograd.grad(value, list(chosen.values()), allow_unused=True, materialize_grads=True)
            yield dict(zip(chosen, found, strict=True))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def mean_gradients(model: nn.Module, names: Iterable[str], task: Task | None, who: str) -> dict[str, Tensor]:
    """The gradient averaged over batches, in float32 (or float64 where the weights are).

    Raises:
        NeedsTask: there is no task, no loss or no batch.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for gradients in batch_gradients(model, list(names), task, who):
        count += 1
        for name, gradient in gradients.items():
            wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            total[name] = total[name].add_(wide) if name in total else wide.clone()
    return {name: gradient.div_(count) for name, gradient in total.items()}
