"""Reconstruction error of the next layer, others refitted (ThiNet, Luo et al. 2017; OSSCAR, Meng et al. 2024).

    score(channel) = rise of E || W x ||^2 of the layer that reads it, when its turn to leave comes and the rest is refitted by least
                     squares,  / E || W x ||^2

Channels leave greedily (see `secateur.solvers.unit_removal`), so of two channels that carry the same signal only the second one is
worth something. Inputs are those of the dense network on unlabelled data. Follow it with ``repair=True``, which does the refit.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from secateur.activations import at_random, columns_of, matrix_of, run_batch
from secateur.errors import NeedsTask
from secateur.examples import leaving_no_trace
from secateur.gates import read_by, reader_inputs
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.solvers.unit_removal import removal_costs
from secateur.task import Task

__all__ = ["Reconstruction"]


@final
@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Score channels by what their readers lose; for granularity "channel". Needs batches, no labels and no loss.

    Args:
        samples: places (patches, tokens) taken of each batch and layer, at random.
        damping: of the least squares, as a fraction of the mean diagonal.
        seed: which places are taken.
    """

    samples: int = 4096
    damping: float = 1e-3
    seed: int = 0

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:
        """Score every channel that ``targets`` read.

        Raises:
            NeedsTask: no batches.
        """
        if task is None:
            raise NeedsTask(
                "the reconstruction criterion looks at what flows through the network: pass task=sc.Task(batches)"
            )
        readers = read_by(model, targets)
        modules = {place: module for module, place in readers.items()}
        found = {}
        for place, gram in self._grams(model, targets, task).items():
            weight = matrix_of(modules[place])
            units = modules[place].get_parameter("weight").shape[place[1]]
            energy = (weight.double() @ gram.double() * weight.double()).sum().clamp_min(1e-300)
            found[place] = removal_costs(weight, gram, units, damping=self.damping) / energy
        return Scores({name: model.get_parameter(name).detach() for name in targets}, channels=found, average=False)

    def _grams(self, model: nn.Module, targets: Targets, task: Task) -> dict[tuple[str, int], Tensor]:
        readers, generator = read_by(model, targets), torch.Generator().manual_seed(self.seed)
        sums: dict[tuple[str, int], Tensor] = {}
        for batch in task.each_batch("the reconstruction criterion"):
            with leaving_no_trace(model), reader_inputs(readers) as seen:
                run_batch(model, batch, task)
            while seen:
                module, x = seen.pop()
                columns = columns_of(module, x.detach(), at_random(self.samples, generator))
                gram = (columns @ columns.t()) / columns.shape[1]
                place = readers[module]
                sums[place] = sums[place] + gram if place in sums else gram
        return sums
