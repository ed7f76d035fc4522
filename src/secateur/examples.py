"""Example inputs: how a user hands them over, and how a model is run on them without a trace."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.errors import WrongModel
from secateur.gradients import evaluating

__all__ = ["Example", "device_of", "leaving_no_trace", "plain_attention", "run"]


class Example(NamedTuple):
    """What a model is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example_inputs: Any, device: torch.device | None = None) -> "Example":
        """Read a tensor, a tuple or list of positional inputs, or a mapping of keyword inputs; move tensors to ``device``.

        >>> Example.of({"x": torch.zeros(2, 3)}).describe()
        'x=[2, 3] float32'
        """
        moved = example_inputs
        if isinstance(example_inputs, Mapping):
            moved = dict(example_inputs)
        if device is not None:
            moved = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, moved)
        if isinstance(moved, dict):
            return cls((), moved)
        return cls(tuple(moved), {}) if isinstance(moved, tuple | list) else cls((moved,), {})

    def describe(self) -> str:
        """Shapes and types, for receipts and messages."""
        return ", ".join([_words(value) for value in self.args] + [f"{k}={_words(v)}" for k, v in self.kwargs.items()])


def device_of(model: nn.Module) -> torch.device | None:
    """The device of the parameters and buffers, or ``None`` where there are none or they are spread over several."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return devices.pop() if len(devices) == 1 else None


@contextmanager
def leaving_no_trace(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and torch's random state as before when it is over."""
    found = device_of(model)
    elsewhere = found is not None and found.type not in ("cpu", "meta")
    with (
        evaluating(model),
        torch.random.fork_rng(
            devices=[found] if elsewhere else [], device_type=found.type if found and elsewhere else "cuda"
        ),
        torch.no_grad(),
    ):
        yield


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let PyTorch's transformer layers run as written: their fused path is one operation, and packs padded tokens into tensors without shapes."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def run(model: nn.Module, example: Example, call: Callable[..., Any] | None = None) -> Any:
    """Call ``model`` (or ``call``, which runs it) on ``example``.

    Raises:
        WrongModel: the model does not take this example; the message shows its shapes.
    """
    try:
        return call() if call else model(*example.args, **example.kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError) as error:
        raise WrongModel(
            f"{type(model).__name__} did not run on example_inputs {example.describe()}: {type(error).__name__}: {error}. "
            "Pass what its forward takes: a tensor, a tuple of positional inputs, or a dict of keyword inputs"
        ) from error


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return f"{type(value).__name__} of {len(tensors)} tensors" if tensors else repr(value)[:40]
