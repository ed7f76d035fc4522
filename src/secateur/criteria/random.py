"""Random scores: the control that every other criterion has to beat."""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["Random"]


@final
@dataclass(frozen=True, kw_only=True)
class Random:
    """Independent uniform scores from ``seed``; the same on every device."""

    seed: int = 0

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:  # noqa: ARG002
        """Score every weight in ``targets``."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters = {name: model.get_parameter(name) for name in targets}
        drawn = {n: torch.rand(p.shape, generator=generator).to(p.device) for n, p in parameters.items()}
        return Scores(drawn, facts=targets)
