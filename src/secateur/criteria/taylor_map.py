"""Taylor expansion of feature maps (Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference").

    Theta(z) = | (1/M) sum_m  dC/dz_m * z_m |,   per example, then averaged over examples     (eq. 7; M: size of the map)
    Theta <- Theta / sqrt( sum_j Theta_j^2 )     within each layer                             (eq. 8)

The absolute value is taken for every example before averaging: afterwards, positive and negative ones would cancel. Maps are taken
where they are read, after the activation. 1/M is the same for all maps of a layer, so eq. 8 takes it out again.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from secateur.gates import gate_gradients
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["TaylorMap"]


@final
@dataclass(frozen=True, kw_only=True)
class TaylorMap:
    """Score channels by the mean over examples of ``|dL/dg|``, normalised within each group; for granularity "channel".

    Args:
        normalise: divide by the Euclidean norm within each group (eq. 8), so that groups can be ranked together.
    """

    normalise: bool = True

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:
        """Score every channel that ``targets`` read.

        Raises:
            NeedsTask: no batches or no loss.
        """
        batches = list(gate_gradients(model, targets, task, "the Taylor criterion of feature maps"))
        found = {place: torch.cat([batch[place] for batch in batches if place in batch], 1) for place in batches[0]}
        values = {name: model.get_parameter(name).detach() for name in targets}
        return Scores(values, finish=_normalised if self.normalise else _mean, channels=found, average=False)


def _mean(gates: Tensor) -> Tensor:
    return gates.abs().mean(-1)


def _normalised(gates: Tensor) -> Tensor:
    theta = _mean(gates)
    return theta / theta.square().sum().sqrt().clamp_min(torch.finfo(theta.dtype).tiny)
