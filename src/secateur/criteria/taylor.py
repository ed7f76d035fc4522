"""First-order Taylor: how much the loss would change if what leaves were zero.

    score(unit) = | sum over weights of the unit of  g * w |,       g = dL/dw over the batches

Mozer & Smolensky 1989; Molchanov et al. 2019, eq. 8 (there squared, which ranks alike). Signs are kept until the unit is
summed: weights of a filter that cancel each other are not missed together.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from secateur.gradients import mean_gradients
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["Taylor"]


@final
@dataclass(frozen=True, kw_only=True)
class Taylor:
    """Score by ``|g * w|`` with the gradient averaged over the task's batches, in eval mode."""

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:
        """Score every weight in ``targets``.

        Raises:
            NeedsTask: no batches or no loss.
        """
        gradients = mean_gradients(model, targets, task, "the Taylor criterion")
        values = {name: g.mul_(model.get_parameter(name).detach()) for name, g in gradients.items()}
        return Scores(values, finish=torch.abs, facts=targets)
