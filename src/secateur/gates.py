"""Gates: what flows into the layers that read a channel, and how the loss depends on it.

Imagine a factor g = 1 on every channel where it is read. A channel that leaves is g = 0, and to first order

    dL = - dL/dg = - sum over the readers of  <dL/dx_j, x_j>,

x_j all elements of the reader's input that belong to channel j. At the readers the gate is exact for everything that can leave:
through a batch norm and an activation, through a residual stream (each block reads it), through flattening. For a layer that is
linear in its input the same number is <dL/dW_j, W_j>, summed over the batch (Molchanov et al. 2019, section 3.2, on gates): that is
used where a layer is not called as a module (inside attention, recurrent cells), for one example after the other. Examples share the
mean where a batch cannot be taken apart, or its loss is no mean over examples.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.curvatures.singles import singles_of
from secateur.errors import NeedsTask
from secateur.gradients import evaluating
from secateur.layers import facts_of
from secateur.protocols import Targets
from secateur.task import Task

__all__ = ["Place", "by_channel", "examples_in", "gate_gradients", "read_by", "reader_inputs"]

Place = tuple[str, int]


def read_by(model: nn.Module, targets: Targets) -> dict[nn.Module, Place]:
    """The layers that read channels one by one, each with the place of its weight that holds them.

    Linear layers and convolutions without groups: a group reads its channels together and leaves with them.
    """
    readers = {}
    for path, module in model.named_modules():
        for attribute, facts in facts_of(module).items():
            name = f"{path}.{attribute}".lstrip(".")
            plain = facts.kind in ("linear", "conv") and facts.groups == 1 and not isinstance(module, nn.Bilinear)
            if name in targets and plain and facts.in_dim is not None:
                readers[module] = (name, facts.in_dim)
    return readers


@contextmanager
def reader_inputs(readers: dict[nn.Module, Place]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Gather what goes into each reader while the model runs, in order; a layer that runs twice is there twice.

    A reader gets a view of its own, so that a derivative is by what this one reads, whoever else reads the same.
    """
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> Any:
        found = args[0] if args else kwargs.get("input")
        if not isinstance(found, Tensor):
            return None
        # without gradients code may change it in place later on
        own = found.view_as(found) if torch.is_grad_enabled() else found.clone()
        seen.append((module, own))
        return ((own, *args[1:]), kwargs) if args else (args, {**kwargs, "input": own})

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in readers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def by_channel(module: nn.Module, flow: Tensor) -> Tensor:
    """Arrange a reader's input as ``[channels, examples, elements]``.

    >>> by_channel(nn.Conv2d(3, 8, 1), torch.zeros(5, 3, 4, 4)).shape, by_channel(nn.Linear(6, 2), torch.zeros(5, 7, 6)).shape
    (torch.Size([3, 5, 16]), torch.Size([6, 5, 7]))
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        batched = flow if flow.dim() == module.weight.dim() else flow.unsqueeze(0)
        return batched.transpose(0, 1).flatten(2)
    batched = flow if flow.dim() > 1 else flow.unsqueeze(0)
    return batched.movedim(-1, 0).flatten(2) if batched.dim() > 2 else batched.t().unsqueeze(-1)


def gate_gradients(model: nn.Module, targets: Targets, task: Task | None, who: str) -> Iterator[dict[Place, Tensor]]:
    """Yield ``dL/dg`` for every channel that a layer reads and every example of a batch, ``[channels, examples]``, batch by batch.

    ``L`` is taken to be a mean over the batch, so its gradient is scaled by the number of examples. The model is left as it was.

    Raises:
        NeedsTask: there is no task, no loss or no batch.
    """
    if task is None:
        raise NeedsTask(f"{who} needs data: pass task=sc.Task(batches, loss=lambda model, batch: ...)")
    loss, readers = task.needs_loss(who), read_by(model, targets)
    with _trainable(model):
        for batch in task.each_batch(who):
            with evaluating(model), torch.enable_grad(), reader_inputs(readers) as seen:
                value = loss(model, batch)
            flows = [(module, x) for module, x in seen if x.requires_grad]
            silent = _not_called(model, targets, {readers[module] for module, _ in seen})
            gates = _of_flows(readers, flows, _gradients(value, [x for _, x in flows]), examples_in(batch))
            with evaluating(model), torch.enable_grad():
                inside = _of_weights(silent, partial(loss, model), batch)
            yield gates | inside


def _gradients(value: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True) if wanted else ()


def _not_called(model: nn.Module, targets: Targets, called: set[Place]) -> list[tuple[Place, Tensor]]:
    """Weights that read channels in a call that no hook saw."""
    found = []
    for path, module in model.named_modules():
        for attribute, facts in facts_of(module).items():
            place = (f"{path}.{attribute}".lstrip("."), 1 if facts.in_dim is None else facts.in_dim)
            reads = facts.kind in ("linear", "attention", "recurrent") and facts.in_dim is not None
            if reads and place[0] in targets and place not in called:
                found.append((place, module.get_parameter(attribute)))
    return found


def examples_in(batch: Any) -> int:
    """How many examples a batch holds: the first size of its first tensor or array; 1 where it has none."""
    first = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim), None)
    return 1 if first is None else int(first.shape[0])


def _of_flows(
    readers: dict[nn.Module, Place],
    flows: list[tuple[nn.Module, Tensor]],
    gradients: tuple[Tensor, ...],
    examples: int,
) -> dict[Place, Tensor]:
    found: dict[Place, Tensor] = {}
    for (module, x), gradient in zip(flows, gradients, strict=True):
        slope, flow = (_examples_first(module, t, examples) for t in (gradient.float(), x.detach().float()))
        gate = (by_channel(module, slope) * by_channel(module, flow)).sum(-1)
        gate = _to_examples(gate, examples) * examples
        place = readers[module]
        found[place] = found[place] + gate if place in found else gate
    return found


def _examples_first(module: nn.Module, flow: Tensor, examples: int) -> Tensor:
    """Sequences may stand as ``[tokens, examples, width]``, as in PyTorch's transformers by default."""
    turned = flow.dim() == 3 and flow.shape[0] != examples == flow.shape[1]
    return flow.transpose(0, 1) if turned and not isinstance(module, nn.modules.conv._ConvNd) else flow


def _of_weights(silent: list[tuple[Place, Tensor]], loss: Callable[[Any], Tensor], batch: Any) -> dict[Place, Tensor]:
    """``<dL/dW_j, W_j>`` of every example, ``[channels, examples]``; all share the mean where they cannot be told apart."""
    if not silent:
        return {}
    value = loss(batch)
    mean = {place: gate.unsqueeze(1).expand(-1, examples_in(batch)) for place, gate in _of_one(silent, value).items()}
    return _of_each(silent, loss, batch, value.detach()) or mean


def _of_each(
    silent: list[tuple[Place, Tensor]], loss: Callable[[Any], Tensor], batch: Any, mean: Tensor
) -> dict[Place, Tensor]:
    """Nothing where the batch cannot be taken apart, or ``mean`` is not the mean of its examples' losses."""
    values, columns = [], []
    try:
        singles = singles_of(batch, "a gate")
        for k in range(singles.count):
            value = loss(singles.one(k))
            columns.append(_of_one(silent, value))
            values.append(value.detach())
    except (NeedsTask, RuntimeError, ValueError, IndexError):  # a loss that compares examples, say
        return {}
    if not torch.allclose(torch.stack(values).mean(), mean, rtol=1e-3, atol=1e-6):
        return {}
    return {place: torch.stack([column[place] for column in columns], 1) for place, _ in silent}


def _of_one(silent: list[tuple[Place, Tensor]], value: Tensor) -> dict[Place, Tensor]:
    found = {}
    for (place, weight), gradient in zip(silent, _gradients(value, [weight for _, weight in silent]), strict=True):
        found[place] = (weight.detach().float() * gradient.float()).movedim(place[1], 0).flatten(1).sum(1)
    return found


def _to_examples(gate: Tensor, examples: int) -> Tensor:
    """Windows and other parts of an example are added up; what has no examples of its own is shared by all."""
    parts = gate.shape[1]
    if parts % examples == 0:
        return gate.reshape(len(gate), examples, parts // examples).sum(2)
    return gate.sum(1, keepdim=True).expand(-1, examples) / examples


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Let gradients flow through layers that are frozen too."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
