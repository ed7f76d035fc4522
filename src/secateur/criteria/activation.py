"""Activation statistics: how much flows through a channel, without labels or gradients.

    rms:   sqrt( E[x^2] )          mean:  E|x|          std:  sqrt( E[x^2] - E[x]^2 )
    apoz:  1 - E[x == 0]           (Hu et al. 2016: the average percentage of zeros; here larger means more worth keeping)

Taken where a channel is read, over all examples and places of the task's batches; a constant channel has a std of zero, and a bias
could stand in for it. What is read behind a global pooling is a mean, hardly ever zero: there apoz says little, so rank by "rms".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from secateur.activations import each_flow
from secateur.errors import BadScores
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["Activation"]

Moments = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # sums of x, |x|, x^2 and of x != 0, each divided by how many there were


@final
@dataclass(frozen=True, kw_only=True)
class Activation:
    """Score channels by what flows through them; for granularity "channel". Needs batches, no labels and no loss.

    Args:
        statistic: "rms", "mean", "std" or "apoz".
    """

    statistic: Literal["rms", "mean", "std", "apoz"] = "rms"

    def __post_init__(self) -> None:
        if self.statistic not in _FINISH:
            raise BadScores(f"Activation(statistic={self.statistic!r}): there are {', '.join(_FINISH)}")

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:
        """Score every channel that ``targets`` read.

        Raises:
            NeedsTask: no batches.
        """
        sums: dict[tuple[str, int], Tensor] = {}
        counts: dict[tuple[str, int], int] = {}
        for place, flow in each_flow(model, targets, task, "the activation criterion"):
            x = flow.double()
            moments = torch.stack([x.sum(1), x.abs().sum(1), x.square().sum(1), (x != 0).sum(1).double()], 1)
            sums[place] = sums[place] + moments if place in sums else moments
            counts[place] = counts.get(place, 0) + flow.shape[1]
        values = {name: model.get_parameter(name).detach() for name in targets}
        found = {place: total / counts[place] for place, total in sums.items()}
        return Scores(values, finish=_FINISH[self.statistic], channels=found)


def _rms(moments: Tensor) -> Tensor:
    return moments[:, 2].sqrt()


def _mean(moments: Tensor) -> Tensor:
    return moments[:, 1]


def _std(moments: Tensor) -> Tensor:
    return (moments[:, 2] - moments[:, 0].square()).clamp_min(0).sqrt()


def _apoz(moments: Tensor) -> Tensor:
    return moments[:, 3]


_FINISH: dict[str, Callable[[Tensor], Tensor]] = {"rms": _rms, "mean": _mean, "std": _std, "apoz": _apoz}
