"""Batch-norm scales: the factor that a network itself puts on a channel (Liu et al. 2017, "Network slimming").

    score(channel) = |gamma|

Meaningful after training with an L1 penalty on the scales (`sc.methods.Slimming`); without it, scales are only loosely related to
importance. A group with several batch norms takes the mean; a group without any stays.
"""

from dataclasses import dataclass
from typing import final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["BnScale", "scales_of"]


@final
@dataclass(frozen=True, kw_only=True)
class BnScale:
    """Score channels by the absolute value of their batch norm's scale; for granularity "channel". Reads weights only."""

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:  # noqa: ARG002
        """Score every channel that goes through a batch norm."""
        values = {name: model.get_parameter(name).detach() for name in targets}
        return Scores(values, channels={(name, 0): gamma.detach().abs() for name, gamma in scales_of(model).items()})


def scales_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The scale of every batch norm that has one, by parameter name."""
    norms = {path: m for path, m in model.named_modules() if isinstance(m, _BatchNorm) and m.affine}
    return {f"{path}.weight".lstrip("."): norm.weight for path, norm in norms.items()}
