"""What flows through a network on calibration data: the inputs of its layers, batch by batch, without labels or gradients."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from secateur.errors import NeedsTask
from secateur.examples import Example, device_of, leaving_no_trace
from secateur.gates import Place, by_channel, read_by, reader_inputs
from secateur.protocols import Targets
from secateur.task import Task

__all__ = ["each_flow", "run_batch"]


def run_batch(model: nn.Module, batch: Any, task: Task | None = None) -> None:
    """Run a model on one batch of a task: by the task's loss where it has one, which knows what a batch is; else on its first entry."""
    if task is not None and task.loss is not None:
        task.loss(model, batch)
        return
    first = batch[0] if isinstance(batch, tuple | list) else batch
    example = Example.of(first if isinstance(first, dict) else (first,), device_of(model))
    model(*example.args, **example.kwargs)


def each_flow(model: nn.Module, targets: Targets, task: Task | None, who: str) -> Iterator[tuple[Place, Tensor]]:
    """Yield what every reader takes in, ``[channels, elements]``, layer by layer and batch by batch; the model is left as it was.

    Raises:
        NeedsTask: there is no task or no batch.
    """
    if task is None:
        raise NeedsTask(f"{who} looks at what flows through the network: pass task=sc.Task(batches)")
    readers = read_by(model, targets)
    for batch in task.each_batch(who):
        with leaving_no_trace(model), reader_inputs(readers) as seen:
            run_batch(model, batch, task)
        while seen:
            module, x = seen.pop()
            yield readers[module], by_channel(module, x.detach()).flatten(1)
