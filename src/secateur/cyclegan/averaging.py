"""The exponential moving average of a model's weights, which makes better pictures than the weights themselves (Yazıcı et al. 2019).

average <- d average + (1 - d) weights,      d = min(decay, (1 + t) / (10 + t))       (so that the start is forgotten soon)
"""

import copy

import torch
from torch import nn

__all__ = ["Average"]


class Average:
    """Holds a copy of a model whose weights are the average of those it saw.

    Args:
        model: what is averaged; of the same shapes whenever it is shown.
        decay: how much of the average stays at each step.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's weights into the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, now in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        for kept, latest in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(latest)
