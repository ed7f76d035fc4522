"""Calibration data flowing through a network stage by stage (`secateur.layerwise.staging`), so that no more than one is ever run at a time.

What a stage takes in is kept for every batch; when its weights have changed, `advance` runs it
once more and hands its outputs to the next.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from secateur.activations import run_batch
from secateur.examples import leaving_no_trace
from secateur.layerwise.chains import first_of
from secateur.layerwise.inflow import joined_heads, listening_to
from secateur.layerwise.staging import Stage
from secateur.renewing import renewed
from secateur.task import Task

__all__ = ["Convoy", "Pair", "Stream"]

Listener = Callable[[str, Any], None]


class _Enough(Exception):
    """All that was asked for has been seen: the rest need not run."""


@dataclass(eq=False)
class Stream:
    """One network with the data on their way through it.

    Args:
        model: the network.
        batches: the calibration batches, in memory.
        task: says how the network is run on a batch.
        chain: paths of its blocks.
    """

    model: nn.Module
    batches: Sequence[Any]
    task: Task | None
    chain: Sequence[str] = ()
    held: list[tuple[tuple[Any, ...], dict[str, Any]] | None] = field(default_factory=list)
    _calls: dict[tuple[Stage, int], dict[str, int]] = field(default_factory=dict)

    def enter(self) -> None:
        """Run up to the first block and keep what it takes in."""
        self.held = []
        first = self.model.get_submodule(self.chain[0])

        def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.held.append(renewed((tuple(args), dict(kwargs)), self.model))
            raise _Enough

        handle = first.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            for place, batch in enumerate(self.batches):
                with _stopping(), leaving_no_trace(self.model):
                    run_batch(self.model, batch, self.task)
                self.held += [None] * (place + 1 - len(self.held))  # this batch never comes to the chain
        finally:
            handle.remove()

    def advance(self, block: str) -> None:
        """Run ``block`` on what it takes in, and keep what it gives for the next."""
        module = self.model.get_submodule(block)
        for place in range(len(self.held)):
            found = self.held[place]
            if found is None:
                continue
            args, kwargs = renewed(found, self.model)
            with leaving_no_trace(module):
                out = first_of(module(*args, **kwargs))
            assert isinstance(out, Tensor)
            self.held[place] = ((out, *found[0][1:]), found[1])

    def listen(self, stage: Stage, paths: Sequence[str], tell: Listener, known: Collection[str], place: int) -> None:
        """Run ``stage`` on batch ``place`` and tell what the layers ``paths`` take in.

        The first time it is run to its end, and the calls of all ``known`` layers are counted: a batch of longer sequences may have more
        of them. From then on it is stopped when each of ``paths`` was called as often.
        """
        counted = self._calls.get((stage, place))
        left = {path: counted[path] for path in paths} if counted else {}
        if counted and not any(left.values()):
            return

        def note(path: str, feeds: Any) -> None:
            tell(path, feeds)
            if left:
                left[path] -= 1
                if not any(left.values()):
                    raise _Enough

        modules = {self.model.get_submodule(path): path for path in paths}
        around = [self.model.get_submodule(path.rpartition(".")[0]) for path in paths]
        with ExitStack() as stack:
            if not counted:
                self._calls[stage, place] = stack.enter_context(_counting(self.model, known))
            stack.enter_context(_stopping())
            stack.enter_context(leaving_no_trace(self.model))
            stack.enter_context(listening_to(modules, note, around))
            self.run(stage, place)

    def inputs(self, stage: Stage, paths: Sequence[str], place: int) -> dict[str, Tensor]:
        """Run ``stage`` on batch ``place`` until each of the layers ``paths`` was called, and give what each took in first."""
        found: dict[str, Tensor] = {}

        def note(path: str, x: Tensor) -> None:
            if path not in found:  # a copy: code may change it in place later on
                found[path] = x.detach().clone()
            if len(found) == len(paths):
                raise _Enough

        def note_call(path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
            note(path, args[0] if args else kwargs["input"])

        def note_heads(path: str, attention: nn.MultiheadAttention, args: Any, kwargs: Any, _: Any) -> None:
            note(path, joined_heads(attention, args, kwargs))

        handles = []
        for path in paths:
            parent = _attention_around(self.model, path)
            if parent is not None:
                handles.append(parent.register_forward_hook(partial(note_heads, path), with_kwargs=True))
            else:
                layer = self.model.get_submodule(path)
                handles.append(layer.register_forward_pre_hook(partial(note_call, path), with_kwargs=True))
        try:
            with _stopping(), leaving_no_trace(self.model):
                self.run(stage, place)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def run(self, stage: Stage, place: int) -> Any:
        """Run ``stage`` on batch ``place``."""
        if stage.block:
            found = self.held[place]
            if found is None:
                return None
            args, kwargs = renewed(found, self.model)
            return self.model.get_submodule(stage.block)(*args, **kwargs)
        return run_batch(self.model, self.batches[place], self.task)


class Convoy:
    """Streams that go through the same stages in step.

    Args:
        streams: each a network of the same chain.
        stages: which they go through, in order.
    """

    def __init__(self, streams: Sequence[Stream], stages: Sequence[Stage]) -> None:
        self.streams, self._chain, self._entered = streams, streams[0].chain, False
        if self._chain and stages[0].block:
            self._enter()

    def passed(self, stage: Stage) -> None:
        """Go on to the next stage: the weights of ``stage`` are final."""
        if not self._chain or stage.last:
            return
        if not self._entered:
            self._enter()
            return
        for stream in self.streams:
            stream.advance(stage.block)

    def _enter(self) -> None:
        for stream in self.streams:
            stream.enter()
        self._entered = True


class Pair:
    """The pruned network's data, and the dense one's where it is listened to.

    Args:
        dense: the dense network's.
        now: the pruned one's, or ``dense`` itself.
        stages: which they go through.
        both: whether the dense one is listened to.
    """

    def __init__(self, dense: Stream, now: Stream, stages: Sequence[Stage], *, both: bool) -> None:
        self.dense, self.now = dense, now
        self.passed = Convoy([now, dense] if both and now is not dense else [now], stages).passed


@contextmanager
def _stopping() -> Iterator[None]:
    with suppress(_Enough):
        yield


@contextmanager
def _counting(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, int]]:
    """How often each layer is called; the out-projection of attention, which is not called as a module, as often as its parent."""
    calls = dict.fromkeys(paths, 0)

    def count(path: str, *_: Any) -> None:
        calls[path] += 1

    handles = []
    for path in calls:
        called = _attention_around(model, path) or model.get_submodule(path)
        handles.append(called.register_forward_pre_hook(partial(count, path)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _attention_around(model: nn.Module, path: str) -> nn.MultiheadAttention | None:
    """The attention whose out-projection this is: it is not called as a module."""
    parent = model.get_submodule(path.rpartition(".")[0])
    return (
        parent if isinstance(parent, nn.MultiheadAttention) and parent.out_proj is model.get_submodule(path) else None
    )
