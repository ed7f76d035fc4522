"""The norm of a filter: what a layer uses to make a channel (Li et al. 2017, "Pruning filters for efficient convnets").

    score(filter j) = ( sum over inputs and taps of |F_j|^p )^(1/p)

Only the layers that make a channel count, not those that read it; `magnitude` looks at both. A residual stream, which several layers
write to, takes the mean of their filters' norms.
"""

from dataclasses import dataclass
from typing import final

from torch import nn

from secateur.errors import BadScores
from secateur.layers import made_by
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["FilterNorm"]


@final
@dataclass(frozen=True, kw_only=True)
class FilterNorm:
    """Score channels by the Lp norm of the filters that make them; for granularity "channel". Reads weights only.

    Args:
        p: 1 (as in the paper) or 2.
    """

    p: int = 1

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise BadScores(f"FilterNorm(p={self.p}): p is 1 (sum of absolute values) or 2 (Euclidean norm)")

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:  # noqa: ARG002
        """Score every channel that a layer makes."""
        values = {name: model.get_parameter(name).detach() for name in targets}
        makers = made_by(model, targets)
        norms = {
            (name, dim): values[name].movedim(dim, 0).flatten(1).float().norm(self.p, dim=1)
            for name, dim in makers.items()
        }
        return Scores(values, channels=norms)
