"""Repair after channels left: every layer that read them is refitted, so that it gives again what the dense network's layer gave.

Layer by layer in the order in which they run: the dense network says what a layer took in and gave; the masked one, repaired as far
as that layer, says what it takes in now. Least squares does the rest (`secateur.solvers.least_squares`); no labels are needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.activations import columns_of, matrix_of, run_batch
from secateur.examples import leaving_no_trace
from secateur.facts import LayerFacts
from secateur.gates import Place, read_by, reader_inputs
from secateur.masks import Masks
from secateur.solvers.least_squares import refit
from secateur.task import Task

__all__ = ["Fit", "repair_"]

Progress = Callable[[int, int, str], object]


@final
@dataclass(frozen=True, kw_only=True)
class Fit:
    """How layers are refitted.

    Args:
        samples: places (patches, tokens) taken of each batch and layer, at random.
        damping: of the least squares, as a fraction of the mean diagonal.
        seed: which places are taken.
    """

    samples: int = 4096
    damping: float = 1e-4
    seed: int = 0


def repair_(
    masked: nn.Module,
    dense: nn.Module,
    masks: Masks,
    task: Task,
    *,
    fit: Fit | None = None,
    on_progress: Progress | None = None,
) -> list[str]:
    """Refit the layers of ``masked`` that lost inputs, in place.

    Args:
        masked: the network with its masks applied; only weights that the masks keep change.
        dense: the network before.
        masks: what is kept.
        task: its batches run both networks; no labels are used.
        fit: how many places are taken, and how the squares are damped.
        on_progress: called with (layers done, layers in all, layer).

    Returns:
        The weights that were refitted, in order.

    Raises:
        NeedsTask: there is no batch.
    """
    torn = _torn(masked, masks)
    order = _in_running_order(masked, torn, task)
    for done, module in enumerate(order):
        name, dim = torn[module]
        if on_progress:
            on_progress(done, len(order), name)
        alive = masks[name].movedim(dim, 0).flatten(1).any(1)
        pair = _Pair(masked, module, dense, dense.get_submodule(name.rpartition(".")[0]))
        fitted = pair.refitted(alive, task, fit or Fit())
        if fitted is not None:
            _write(module, fitted, masks[name])
    return [torn[module][0] for module in order]


def _torn(masked: nn.Module, masks: Masks) -> dict[nn.Module, Place]:
    """The layers of which whole inputs are gone."""
    readers = read_by(masked, dict.fromkeys(masks, LayerFacts()))
    found = {}
    for module, (name, dim) in readers.items():
        alive = masks[name].movedim(dim, 0).flatten(1).any(1)
        if not bool(alive.all()) and bool(alive.any()):
            found[module] = (name, dim)
    return found


def _in_running_order(model: nn.Module, layers: dict[nn.Module, Place], task: Task) -> list[nn.Module]:
    batch = next(task.each_batch("repair"))
    with leaving_no_trace(model), reader_inputs(layers) as seen:
        run_batch(model, batch, task)
    return list(dict.fromkeys(module for module, _ in seen))


class _Enough(Exception):
    """The layer was reached: the rest of the network need not run."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """A layer of the masked network and its twin in the dense one."""

    masked: nn.Module
    module: nn.Module
    dense: nn.Module
    twin: nn.Module

    def refitted(self, alive: Tensor, task: Task, fit: Fit) -> Tensor | None:
        """The weight matrix that does with the inputs that are ``alive`` what the twin does; None if the layer never runs."""
        weight = matrix_of(self.twin)
        features = alive.repeat_interleave(weight.shape[1] // len(alive))
        generator = torch.Generator().manual_seed(fit.seed)
        gram = cross = None
        for batch in task.each_batch("repair"):
            now, before = (
                _input_of(self.masked, self.module, batch, task),
                _input_of(self.dense, self.twin, batch, task),
            )
            if now is None or before is None:
                continue
            here, there = columns_of(self.module, now)[features], columns_of(self.twin, before)
            chosen = torch.randperm(here.shape[1], generator=generator)[: fit.samples].to(here.device)
            here, there = here[:, chosen].double(), there[:, chosen].double()
            gram = here @ here.t() if gram is None else gram + here @ here.t()
            cross = there @ here.t() if cross is None else cross + there @ here.t()
        if gram is None or cross is None:
            return None
        fitted = torch.zeros_like(weight)
        fitted[:, features] = refit(weight, cross, gram, damping=fit.damping)
        return fitted


def _input_of(model: nn.Module, module: nn.Module, batch: Any, task: Task) -> Tensor | None:
    """What ``module`` takes in first; the model runs no further."""
    found: list[Tensor] = []

    def stop(_: nn.Module, args: Any) -> None:
        found.append(args[0].detach())
        raise _Enough

    handle = module.register_forward_pre_hook(stop)
    try:
        with leaving_no_trace(model):
            run_batch(model, batch, task)
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0] if found else None


@torch.no_grad()
def _write(module: nn.Module, matrix: Tensor, mask: Tensor) -> None:
    weight = module.get_parameter("weight")
    transposed = isinstance(module, nn.modules.conv._ConvNd) and module.transposed
    shaped = matrix.t().reshape(weight.shape) if transposed else matrix.reshape(weight.shape)
    weight.copy_(shaped.to(weight.dtype)).masked_fill_(~mask.to(weight.device), 0)
