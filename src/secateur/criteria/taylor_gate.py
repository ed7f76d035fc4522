"""Taylor expansion at gates, squared (Molchanov et al. 2019, "Importance estimation for neural network pruning").

    I(unit) = ( dE/dg )^2,  E the mean loss of a mini-batch, averaged over mini-batches       (eq. 8 on a gate, section 3.2)

The gate sits after batch norm and activation; where a residual stream is read by several layers their derivatives add up before
they are squared. Not normalised within layers: the squares are losses, and rank globally as they are.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from secateur.gates import gate_gradients
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["TaylorGate"]


@final
@dataclass(frozen=True, kw_only=True)
class TaylorGate:
    """Score channels by ``(dE/dg)^2``, averaged over the task's batches; for granularity "channel"."""

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:
        """Score every channel that ``targets`` read.

        Raises:
            NeedsTask: no batches or no loss.
        """
        columns: dict[tuple[str, int], list[Tensor]] = {}
        for batch in gate_gradients(model, targets, task, "the Taylor criterion of gates"):
            for place, gates in batch.items():
                columns.setdefault(place, []).append(gates.mean(1))
        values = {name: model.get_parameter(name).detach() for name in targets}
        found = {place: torch.stack(batches, 1) for place, batches in columns.items()}
        return Scores(values, finish=_mean_square, channels=found, average=False)


def _mean_square(gates: Tensor) -> Tensor:
    return gates.square().mean(-1)
