"""Geometric median: filters near the middle of their layer can be expressed by the others (He et al. 2019, FPGM).

    score(filter j) = sum over k of || F_j - F_k ||_2           (eq. 5; the smallest is nearest to the geometric median)

Redundancy, not size: a large filter with close relatives leaves before a small one of its own kind.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from secateur.layers import made_by
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["Fpgm"]


@final
@dataclass(frozen=True, kw_only=True)
class Fpgm:
    """Score channels by the summed distance of their filter to all others of its layer; for granularity "channel"."""

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:  # noqa: ARG002
        """Score every channel that a layer makes."""
        values = {name: model.get_parameter(name).detach() for name in targets}
        makers = made_by(model, targets)
        distances = {(name, dim): _distances(values[name].movedim(dim, 0).flatten(1)) for name, dim in makers.items()}
        return Scores(values, channels=distances)


def _distances(filters: Tensor) -> Tensor:
    wide = filters.double() if filters.shape[0] <= 4096 else filters.float()
    return torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist").sum(1).float()
