"""Training and testing on data that is in memory as whole tensors."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data import Split

Loss = Callable[[Tensor, Tensor], Tensor]


def sigmoid_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of one logit."""
    return F.binary_cross_entropy_with_logits(logits, labels.float())


def each_batch(data: Split, epochs: int, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches in a fresh random order every epoch; the odd rest of an epoch is left out."""
    for _ in range(epochs):
        order = torch.randperm(len(data.x_train), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            yield data.x_train[chosen], data.y_train[chosen]


def train(
    model: nn.Module,
    data: Split,
    *,
    epochs: int,
    seed: int,
    batch: int = 128,
    lr: float = 1e-3,
    loss: Loss = F.cross_entropy,
    begin: Callable[[torch.optim.Optimizer], Callable[[], object]] | None = None,
) -> nn.Module:
    """Train in place with Adam, the learning rate falling as a cosine to a tenth.

    Args:
        begin: called with the optimizer; returns what to call after every step (a run's ``step``).
    """
    steps = len(data.x_train) // batch * epochs
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr / 10)
    after_step = begin(optimizer) if begin else lambda: None
    model.train()
    for x, y in each_batch(data, epochs, batch, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad(set_to_none=True)
        loss(model(x), y).backward()
        optimizer.step()
        schedule.step()
        after_step()
    return model.eval()


@torch.no_grad()
def warped(x: Tensor, generator: torch.Generator, *, shift: float = 0.5, degrees: float = 3.0) -> Tensor:
    """Every picture moved by up to ``shift`` pixels each way, turned by up to ``degrees`` and scaled by as many per cent."""
    turn, scale, right, down = (2 * torch.rand(4, len(x), generator=generator) - 1).unbind()
    turn, scale = turn * degrees * torch.pi / 180, 1 + scale * degrees / 100
    right, down = 2 * shift * right / x.shape[3], 2 * shift * down / x.shape[2]
    rows = [turn.cos() * scale, -turn.sin() * scale, right, turn.sin() * scale, turn.cos() * scale, down]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> float:
    """Per cent right, in evaluation mode; one logit counts as a yes above 0."""
    model.eval()
    right = 0
    for part, labels in zip(x.split(batch), y.split(batch), strict=True):
        out = model(part)
        guess = (out > 0).long() if out.dim() == 1 else out.argmax(1)
        right += int((guess == labels).sum())
    return 100 * right / len(x)
