"""Repair after channels left: every layer that read them is refitted, so that it gives again what the dense network's layer gave.

Layer by layer in the order in which they run: the dense network says what a layer took in and gave; the masked one, repaired as far
as that layer, says what it takes in now. Least squares does the rest (`secateur.solvers.least_squares`); no labels are needed. Both go
block by block where the network is a chain of blocks (`secateur.layerwise.streaming`), so that time grows with its depth, not with the square of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from secateur.activations import at_random, columns_of, matrix_of
from secateur.errors import BadCalibration
from secateur.facts import LayerFacts
from secateur.gates import Place, read_by
from secateur.layerwise.chains import sound_chain
from secateur.layerwise.staging import Stage, stages_of
from secateur.layerwise.streaming import Convoy, Stream
from secateur.masks import Masks
from secateur.solvers.least_squares import Correction, Moments, correction
from secateur.task import Task

__all__ = ["Fit", "Refitted", "repair_"]

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


class Refitted(NamedTuple):
    """The weights that were refitted, in order; those that no batch reaches through a call of their layer."""

    names: list[str]
    unheard: list[str]


def repair_(
    masked: nn.Module,
    dense: nn.Module,
    masks: Masks,
    task: Task,
    *,
    fit: Fit | None = None,
    on_progress: Progress | None = None,
) -> Refitted:
    """Refit the layers of ``masked`` that lost inputs, in place.

    Args:
        masked: the network with its masks applied; only weights that the masks keep change.
        dense: the network before.
        masks: what is kept.
        task: its batches run both networks; no labels are used.
        fit: how many places are taken, and how the squares are damped.
        on_progress: called with (layers done, layers in all, layer).

    Raises:
        NeedsTask: there is no batch.
        BadCalibration: a layer takes in or gives NaN or infinity.
    """
    torn, fit, found, done = _torn(masked, masks), fit or Fit(), Refitted([], []), 0
    batches = list(task.each_batch("repair"))
    if not torn:
        return found
    chain = sound_chain(dense, batches, task)
    stages, calls = stages_of(masked, [*torn], chain, batches, task)
    found.unheard.extend(place[0] for path, place in torn.items() if path not in calls)
    convoy = Convoy([Stream(model, batches, task, chain) for model in (masked, dense)], stages)
    for stage in stages:
        for group in stage.groups:
            if on_progress:
                on_progress(done, len(calls), torn[group[0]][0])
            done += len(group)
            for lot in _gathered(convoy, stage, [_Lot(masked, dense, p, _alive(masks, torn[p]), fit) for p in group]):
                name, made = torn[lot.path][0], lot.correction()
                if made:
                    _add(lot.module, made, lot.alive, masks, name)
                    found.names.append(name)
                elif not lot.batches:
                    found.unheard.append(name)
        convoy.passed(stage)
    return found


def _gathered(convoy: Convoy, stage: Stage, lots: "list[_Lot]") -> "list[_Lot]":
    """The layers of a group, which take in the same, with what all batches say of them."""
    streams = convoy.streams
    for place in range(len(streams[0].batches)):
        now, before = (stream.inputs(stage, [lot.path for lot in lots], place) for stream in streams)
        for lot in lots:
            if lot.path in now and lot.path in before:
                lot.add(now[lot.path], before[lot.path], alone=len(streams[0].batches) == 1)
    return lots


def _torn(masked: nn.Module, masks: Masks) -> dict[str, Place]:
    """The layers of which whole inputs are gone, by path."""
    readers = read_by(masked, dict.fromkeys(masks, LayerFacts()))
    found = {}
    for place in readers.values():
        alive = _alive(masks, place)
        if not bool(alive.all()) and bool(alive.any()):
            found[place[0].rpartition(".")[0]] = place
    return found


def _alive(masks: Masks, place: Place) -> Tensor:
    """Which inputs of a layer are left."""
    name, dim = place
    return masks[name].movedim(dim, 0).flatten(1).any(1)


class _Lot:
    """What is gathered for one layer: what is missing of its output and the inputs that are left, in two halves of the batches."""

    def __init__(self, masked: nn.Module, dense: nn.Module, path: str, alive: Tensor, fit: Fit) -> None:
        self.path, self.alive = path, alive
        self.module, self._twin = masked.get_submodule(path), dense.get_submodule(path)
        self._fit, self._halves = fit, dict[int, Moments]()
        self._whole, now = matrix_of(self._twin).double(), matrix_of(self.module).double()
        self._features = alive.repeat_interleave(now.shape[1] // len(alive))
        self._now = now[:, self._features]
        self._generator = torch.Generator().manual_seed(fit.seed)
        self._level: Tensor | None = None
        self.batches = 0

    def add(self, now: Tensor, before: Tensor, *, alone: bool) -> None:
        """Take in a batch: every other one is in the second half; the only one is cut in two."""
        self.batches += 1
        seed = int(torch.randint(1 << 62, (), generator=self._generator))  # the same places in both
        here, there = (
            columns_of(layer, x, at_random(self._fit.samples, torch.Generator().manual_seed(seed))).double()
            for layer, x in ((self.module, now), (self._twin, before))
        )
        here, output = here[self._features], self._whole @ there
        if not bool(here.isfinite().all() and output.isfinite().all()):
            raise BadCalibration(
                f"repair=True refits layers on what flows through them, and {self.path!r} sees NaN or infinite numbers; look for them in the "
                "batches, or for sequences that are masked as a whole"
            )
        if alone and now.dim() > 1 and len(now) == 1:
            return  # one example says nothing about others
        energy = output.square().sum(0)
        self._level = _usual(energy) if self._level is None else self._level
        parts = here, output - self._now @ here, (_HUGE * self._level / energy).clamp_max(1).square()
        pieces = [parts] if not alone else list(zip(*(part.chunk(2, -1) for part in parts), strict=True))
        for at, piece in enumerate(pieces, self.batches):
            moments = Moments.of(*piece)
            self._halves[at % 2] = self._halves[at % 2] + moments if at % 2 in self._halves else moments

    def correction(self) -> Correction | None:
        """What brings the output back; None where that gains nothing, or where one of the halves is empty."""
        if len(self._halves) < 2:
            return None
        return correction(list(self._halves.values()), damping=self._fit.damping, bias=_has_bias(self.module))


def _usual(energy: Tensor) -> Tensor:
    """The median of what is not next to nothing, such as the background of a picture."""
    real = energy[energy > 1e-4 * energy.mean()]
    return real.median() if len(real) else energy.new_ones(())


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
