"""Diagonal Fisher information of gates: the second-order rise of the loss when a channel is shut.

    s(unit) = 1/2 * (1/N) sum_n ( dL_n / dg )^2        (Theis et al. 2018, eq. 7; Liu et al. 2021, "Group Fisher pruning", eq. 5)

The empirical Fisher at the true labels: gradients of single examples, squared and then averaged. With gates at the readers of a
coupled group the derivatives of all its layers add up before they are squared.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from secateur.gates import gate_gradients
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["Fisher"]


@final
@dataclass(frozen=True, kw_only=True)
class Fisher:
    """Score channels by half the mean square of the gate's gradient over examples; for granularity "channel"."""

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:
        """Score every channel that ``targets`` read.

        Raises:
            NeedsTask: no batches or no loss.
        """
        batches = list(gate_gradients(model, targets, task, "the Fisher criterion"))
        found = {place: torch.cat([batch[place] for batch in batches if place in batch], 1) for place in batches[0]}
        values = {name: model.get_parameter(name).detach() for name in targets}
        return Scores(values, finish=_half_mean_square, channels=found, average=False)


def _half_mean_square(gates: Tensor) -> Tensor:
    return gates.square().mean(-1) / 2
