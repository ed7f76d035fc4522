"""What flows through a network on calibration data: the inputs of its layers, batch by batch, without labels or gradients."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.errors import NeedsTask, SecateurError, WrongModel
from secateur.examples import Example, device_of, leaving_no_trace
from secateur.gates import Place, by_channel, read_by, reader_inputs
from secateur.protocols import Targets
from secateur.renewing import renewed
from secateur.task import Task

__all__ = ["at_random", "called", "columns_of", "each_flow", "fresh", "matrix_of", "run_batch", "run_hooked"]


def run_batch(model: nn.Module, batch: Any, task: Task | None = None) -> None:
    """Run a model on one batch of a task: by the task's loss where it has one, which knows what a batch is; else on its first entry."""
    if task is not None and task.loss is not None:
        task.loss(model, fresh(batch))
        return
    called(model, batch)


def called(model: nn.Module, batch: Any) -> Any:
    """What a model gives for a batch by itself: for its first entry, where it is a tuple or a list, for it is (inputs, labels) then.

    Raises:
        NeedsTask: the model takes more than that.
        WrongModel: it fails on it; the message shows the shapes.
    """
    first = batch[0] if isinstance(batch, tuple | list) else batch
    example = Example.of(first if isinstance(first, dict) else (first,), device_of(model))
    args, kwargs = renewed((example.args, example.kwargs), model)
    try:
        return model(*args, **kwargs)
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise WrongModel(
            f"{type(model).__name__} did not run on a batch of Task.batches, {example.describe()}: {type(error).__name__}: {error}"
        ) from error
    except TypeError as error:
        signature = _unfitting(model, args, kwargs)
        if signature is None:
            raise
        what = f"the first entry of a batch of {len(batch)}" if first is not batch else "a batch"
        raise NeedsTask(
            f"{type(model).__name__}.forward{signature} does not run on {what} alone ({error}); a tuple or list means (inputs, labels), of which the "
            "first is run. Pass dicts of its inputs as batches, or Task(batches, loss=lambda model, batch: ...), which calls the model itself"
        ) from error


def _unfitting(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.Signature | None:
    """What the model takes, where it is something else; None where it is this, or does not say."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return signature.replace(return_annotation=inspect.Signature.empty)
    return None


def run_hooked(model: nn.Module, batch: Any, task: Task | None, hooks: Iterable[RemovableHandle]) -> None:
    """`run_batch` without a trace, and take ``hooks`` off, whatever happens."""
    try:
        with leaving_no_trace(model):
            run_batch(model, batch, task)
    finally:
        for hook in hooks:
            hook.remove()


def fresh(batch: Any) -> Any:
    """A batch that is used again, as a loader would hand it over anew: a loss may take entries out of it."""
    return copy.copy(batch) if isinstance(batch, dict | list) else batch


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


def columns_of(module: nn.Module, x: Tensor, choose: Callable[[int], Tensor] | None = None) -> Tensor:
    """What a layer's weight is multiplied with, ``[features, samples]``: the patches of a convolution, the tokens of a linear layer.

    ``matrix_of(module) @ columns_of(module, x)`` is the layer's output without bias, position by position; of a transposed
    convolution it is what every input position adds to the output. Without convolution groups. Where only some samples are wanted,
    ``choose`` gives their indices for the number of all; the others are never laid out in memory.

    >>> import torch
    >>> layer, x = nn.Conv2d(2, 3, 3, padding=1, bias=False), torch.randn(4, 2, 5, 5)
    >>> y = matrix_of(layer) @ columns_of(layer, x)
    >>> torch.allclose(y.reshape(3, 4, 5, 5).transpose(0, 1), layer(x), atol=1e-5)
    True
    """
    samples, dims = _samples(module, x)
    if choose is None:
        return samples.permute(*range(dims, samples.dim()), *range(dims)).flatten(samples.dim() - dims).flatten(0, -2)
    chosen = choose(samples.shape[:dims].numel()).to(x.device)
    return samples[torch.unravel_index(chosen, samples.shape[:dims])].flatten(1).t()


def at_random(most: int, generator: torch.Generator) -> Callable[[int], Tensor]:
    """Choose at most so many samples, in order; for `columns_of`."""

    def choose(count: int) -> Tensor:
        if count <= most:
            return torch.arange(count)
        return torch.randperm(count, generator=generator)[:most].sort().values

    return choose


def _samples(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """A view ``[*samples, *features]`` of a layer's input, and how many of its dimensions count samples."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return x.reshape(-1, x.shape[-1]), 1
    batched, dims = (x if x.dim() == module.weight.dim() else x.unsqueeze(0)), len(module.kernel_size)
    if module.transposed:
        return batched.movedim(1, -1), 1 + dims
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    patches: Tensor = nn.functional.pad(batched, module._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        patches = patches.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # [batch, channels, *places, *taps] -> [batch, *places, channels, *taps]
    return patches.movedim(1, 1 + dims), 1 + dims


def matrix_of(module: nn.Module) -> Tensor:
    """A layer's weight as ``[rows, features]``, to go with `columns_of`."""
    weight = module.get_parameter("weight")
    if isinstance(module, nn.modules.conv._ConvNd) and module.transposed:
        return weight.detach().flatten(1).t()
    return weight.detach().flatten(1)
