"""The data, the network and the training of the demonstration; the examples use them, too."""

import math
from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor, nn

from secateur.errors import NeedsPackage
from secateur.task import Task

__all__ = ["Batches", "DigitsNet", "digits", "digits_task", "fit", "loss_of"]


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers for 8x8 images: 85,066 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[batch, 10]`` of ``images`` ``[batch, 1, 8, 8]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


@final
class Batches:
    """A re-iterable of ``(images, labels)``; every pass is shuffled anew from ``seed`` on."""

    def __init__(self, images: Tensor, labels: Tensor, *, size: int = 64, seed: int = 0) -> None:
        self.images, self.labels, self.size = images, labels, size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self._generator)
        for rows in torch.split(order, self.size):
            yield self.images[rows], self.labels[rows]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, then test ones: 1,347 and 450 images ``[1, 8, 8]`` in [0, 1], split evenly by class.

    Raises:
        NeedsPackage: scikit-learn, which ships the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise NeedsPackage(
            "the digits come with scikit-learn, which is missing: pip install 'secateur[demo]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_images, test_images = (
        torch.tensor(part, dtype=torch.float32).div(16).view(-1, 1, 8, 8) for part in parts[:2]
    )
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return train_images, train_labels, test_images, test_labels


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of ``model`` on ``batch``."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def digits_task(*, seed: int = 0) -> Task:
    """Training batches, cross-entropy, and accuracy on the test images in percent."""
    train_images, train_labels, test_images, test_labels = digits()

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        training = model.training
        model.eval()
        hits = int((model(test_images).argmax(1) == test_labels).sum())
        model.train(training)
        return 100 * hits / len(test_labels)

    return Task(Batches(train_images, train_labels, seed=seed), loss=loss_of, evaluate=accuracy)


def fit(
    model: nn.Module,
    task: Task,
    *,
    epochs: int,
    after_step: Callable[[nn.Module, torch.optim.Optimizer], object] | None = None,
) -> None:
    """Train ``model`` in place with AdamW on the task's batches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(epochs):
        for batch in task.each_batch("training"):
            optimizer.zero_grad()
            torch.autograd.backward(task.needs_loss("training")(model, batch))
            optimizer.step()
            if after_step:
                after_step(model, optimizer)
    model.eval()
