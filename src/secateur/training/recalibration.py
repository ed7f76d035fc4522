"""Refresh batch-norm statistics after pruning. Pruned layers send other means and variances than the ones on record."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.errors import NeedsTask

__all__ = ["recalibrate_"]

_NONE = object()


@torch.no_grad()
def recalibrate_(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object] | None = None
) -> int:
    """Replace running means and variances by those over ``batches``, in place; weights do not change.

    Args:
        model: the pruned model.
        batches: inputs, or ``(inputs, ...)`` tuples of which the first is the input. Labels are not used.
        forward: how to run the model on a batch, where ``model(inputs)`` is not it.

    Returns:
        How many batch-norm layers were refreshed (0 if the model has none with statistics; then nothing is run).

    Raises:
        NeedsTask: ``batches`` is empty, or was a generator that is used up; statistics stay as they were.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    first = next(iterator := iter(batches), _NONE)
    if first is _NONE:
        raise NeedsTask("batch-norm statistics need batches and got none; pass a list or a DataLoader")
    training = {m: m.training for m in model.modules()}
    momenta = [norm.momentum for norm in norms]
    statistics = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over all batches
            norm.train()
        for batch in chain([first], iterator):
            (forward or _run)(model, batch)
    except BaseException:  # an interrupted refresh would leave statistics of a few batches
        for norm, earlier in zip(norms, statistics, strict=True):
            for name, buffer in earlier.items():
                norm.get_buffer(name).copy_(buffer)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in training.items():
            module.training = mode
    return len(norms)


def _run(model: nn.Module, batch: Any) -> object:
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(inputs, dict):
        return model(**inputs)
    device = next((p.device for p in model.parameters()), None)
    return model(inputs.to(device) if isinstance(inputs, Tensor) else inputs)
