"""What a model is for: batches, a loss, a quality. One value that every criterion and receipt reads from."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import NeedsTask

__all__ = ["Task"]

Batch = Any


@dataclass(frozen=True, kw_only=False)
class Task:
    """Batches with a loss and a quality.

    Args:
        batches: a re-iterable of batches (a list, a ``DataLoader``), or a function without arguments that returns a fresh
            iterator. Used for scores and calibration.
        loss: ``loss(model, batch)`` gives a scalar tensor, the mean over the batch.
        evaluate: ``evaluate(model)`` gives a float, larger is better.

    >>> import torch
    >>> task = Task([torch.ones(2, 3)], loss=lambda model, batch: model(batch).mean())
    >>> [tuple(batch.shape) for batch in task.each_batch("a doctest")]
    [(2, 3)]
    """

    batches: Iterable[Batch] | Callable[[], Iterable[Batch]] = ()
    loss: Callable[[nn.Module, Batch], Tensor] | None = None
    evaluate: Callable[[nn.Module], float] | None = None

    def each_batch(self, who: str) -> Iterator[Batch]:
        """Iterate over the batches from the start; ``who`` needs them and is named if there are none.

        Raises:
            NeedsTask: ``batches`` is one tensor or no collection, there is no batch, or ``batches`` is an iterator that was used up before.
        """
        source = self.batches() if callable(self.batches) else self.batches
        if isinstance(source, Tensor) or not isinstance(source, Iterable):
            found = f"a tensor of shape {list(source.shape)}" if isinstance(source, Tensor) else repr(source)
            raise NeedsTask(
                f"Task.batches is {found}, not a collection of batches: pass a list such as [x], or x.split(64)"
            )
        seen = 0
        for batch in source:
            seen += 1
            yield batch
        if not seen:
            raise NeedsTask(
                f"{who} needs batches and Task(batches=...) gave none; pass a list, a DataLoader or a function that returns "
                "a fresh iterator (a generator can be read only once)"
            )

    def needs_loss(self, who: str) -> Callable[[nn.Module, Batch], Tensor]:
        """Return the loss, or say that ``who`` cannot work without one.

        Raises:
            NeedsTask: no loss was given; or later, when it gives no single number.
        """
        if self.loss is None:
            raise NeedsTask(f"{who} needs gradients; pass task=sc.Task(batches, loss=lambda model, batch: ...)")
        loss = self.loss

        def checked(model: nn.Module, batch: Batch) -> Tensor:
            value = loss(model, batch)
            if not isinstance(value, Tensor) or value.numel() != 1:
                found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise NeedsTask(
                    f"Task.loss gave {found}; it must give one number for a batch, a tensor: a mean over its examples, say"
                )
            if torch.is_grad_enabled() and not value.requires_grad:
                raise NeedsTask(
                    f"Task.loss gave a number without a gradient, and {who} needs one: look for detach(), item(), torch.no_grad() or "
                    "argmax on the way from the model's output to the loss"
                )
            return value.reshape(())

        return checked

    def needs_evaluate(self, who: str) -> Callable[[nn.Module], float]:
        """Return the evaluation, or say that ``who`` cannot work without one.

        Raises:
            NeedsTask: no evaluation was given.
        """
        if self.evaluate is None:
            raise NeedsTask(f"{who} needs a quality; pass task=sc.Task(batches, evaluate=lambda model: accuracy)")
        return self.evaluate
