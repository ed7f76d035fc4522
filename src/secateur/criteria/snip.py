"""SNIP: connection sensitivity before training, also useful after it.

    score(w) = |g * w|,  units add absolute values        (Lee et al. 2019, eq. 5; the paper's normalisation does not rank)

Differs from Taylor on units of several weights: here absolute values are added, there signed ones.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from secateur.gradients import mean_gradients
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["Snip"]


@final
@dataclass(frozen=True, kw_only=True)
class Snip:
    """Score by ``|g * w|``, absolute values added over a unit."""

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:
        """Score every weight in ``targets``.

        Raises:
            NeedsTask: no batches or no loss.
        """
        gradients = mean_gradients(model, targets, task, "the SNIP criterion")
        values = {name: g.mul_(model.get_parameter(name).detach()) for name, g in gradients.items()}
        return Scores(values, each=torch.abs, facts=targets)
