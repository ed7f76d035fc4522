"""Magnitude: the Lp norm of what leaves.

    score(unit) = ( sum |w|^p ) ^ (1/p)

For single weights every p ranks alike; for filters and blocks L1 (Li et al. 2017) and L2 differ.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from secateur.errors import BadScores
from secateur.protocols import Targets
from secateur.scores import Scores, unchanged
from secateur.task import Task

__all__ = ["Magnitude"]


@final
@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Score by the Lp norm; ``p`` is 1 or 2. Reads weights only; copies none of them.

    >>> scores = Magnitude()(layer := nn.Linear(2, 1), {"weight": None})
    >>> bool((scores.each(scores.values["weight"]) == layer.weight.abs()).all())
    True
    """

    p: int = 1

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise BadScores(f"Magnitude(p={self.p}): p is 1 (sum of absolute values) or 2 (Euclidean norm)")

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:  # noqa: ARG002
        """Score every weight in ``targets``."""
        values = {name: model.get_parameter(name).detach() for name in targets}
        if self.p == 1:
            return Scores(values, each=torch.abs, finish=unchanged, facts=targets)
        return Scores(values, each=_square, finish=torch.sqrt, facts=targets)


def _square(weights: Tensor) -> Tensor:
    return weights.double().square()  # squares of 1e-30 would be zero in less, and tie
