"""Repair after channels left: every layer that read them is refitted, so that it gives again what the dense network's layer gave.

Layer by layer in the order in which they run: the dense network says what a layer took in and gave; the masked one, repaired as far
as that layer, says what it takes in now. Least squares does the rest (`secateur.solvers.least_squares`); no labels are needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.activations import columns_of, matrix_of, run_batch
from secateur.examples import leaving_no_trace
from secateur.facts import LayerFacts
from secateur.gates import Place, read_by, reader_inputs
from secateur.masks import Masks
from secateur.solvers.least_squares import Correction, Moments, correction
from secateur.task import Task

__all__ = ["Fit", "repair_"]

_HUGE = 4.0  # times the median squared length of an output: what lies beyond counts less, by the square

Progress = Callable[[int, int, str], object]


@final
@dataclass(frozen=True, kw_only=True)
class Fit:
    """How layers are refitted.

    Args:
        samples: places (patches, tokens) taken of each batch and layer, at random.
        damping: the least that is tried, as a fraction of the mean diagonal.
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
    torn, fit, names = _torn(masked, masks), fit or Fit(), list[str]()
    order = _in_running_order(masked, torn, task)
    several = len(list(islice(task.each_batch("repair"), 2))) > 1
    for done, module in enumerate(order):
        name, dim = torn[module]
        if on_progress:
            on_progress(done, len(order), name)
        alive = masks[name].movedim(dim, 0).flatten(1).any(1)
        pair = _Pair(masked, module, dense, dense.get_submodule(name.rpartition(".")[0]))
        halves = pair.halves(alive, task, fit, several=several)
        found = halves and correction(halves, damping=fit.damping, bias=_has_bias(module))
        if found:
            _add(module, found, alive, masks, name)
            names.append(name)
    return names


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

    def halves(self, alive: Tensor, task: Task, fit: Fit, *, several: bool) -> list[Moments]:
        """What is missing of the layer's output, and the inputs that are ``alive``, in two halves of the batches; [] if it never runs.

        With ``several`` batches every other one is in the second half; else each is cut in two.
        """
        whole, now = matrix_of(self.twin).double(), matrix_of(self.module).double()
        features = alive.repeat_interleave(whole.shape[1] // len(alive))
        generator = torch.Generator().manual_seed(fit.seed)
        level, found = None, dict[int, Moments]()
        for k, batch in enumerate(task.each_batch("repair")):
            inputs = _input_of(self.masked, self.module, batch, task), _input_of(self.dense, self.twin, batch, task)
            if inputs[0] is None or inputs[1] is None:
                continue
            here, there = columns_of(self.module, inputs[0])[features], columns_of(self.twin, inputs[1])
            chosen = torch.randperm(here.shape[1], generator=generator)[: fit.samples].sort().values.to(here.device)
            here, output = here[:, chosen].double(), whole @ there[:, chosen].double()
            energy = output.square().sum(0)
            level = _usual(energy) if level is None else level
            parts = here, output - now[:, features] @ here, (_HUGE * level / energy).clamp_max(1).square()
            cut = [parts] if several else list(zip(*(part.chunk(2, -1) for part in parts), strict=True))
            for half, piece in enumerate(cut, k if several else 0):
                moments = Moments.of(*piece)
                found[half % 2] = found[half % 2] + moments if half % 2 in found else moments
        return list(found.values()) if len(found) == 2 else []


def _usual(energy: Tensor) -> Tensor:
    """The median of what is not next to nothing, such as the background of a picture."""
    real = energy[energy > 1e-4 * energy.mean()]
    return real.median() if len(real) else energy.new_ones(())


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


def _is_transposed(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and bool(module.transposed)


def _has_bias(module: nn.Module) -> bool:
    """Whether there is one for each row of the matrix: a transposed convolution has one for all taps."""
    return getattr(module, "bias", None) is not None and not _is_transposed(module)


@torch.no_grad()
def _add(module: nn.Module, made: Correction, alive: Tensor, masks: Masks, name: str) -> None:
    """Bring the weight and the bias of a layer up to date; what is masked stays zero."""
    weight, matrix = module.get_parameter("weight"), matrix_of(module).double()
    features = alive.repeat_interleave(matrix.shape[1] // len(alive))
    matrix[:, features] += made.weight
    weight.copy_((matrix.t() if _is_transposed(module) else matrix).reshape(weight.shape))
    if _has_bias(module):
        module.get_parameter("bias").add_(made.bias.to(weight.dtype))
    own = dict(module.named_parameters(recurse=False))
    for part, parameter in own.items():
        mask = masks.get(f"{name.removesuffix('weight')}{part}")
        if mask is not None:
            parameter.masked_fill_(~mask.to(parameter.device), 0)
