"""`couple`: run once with dye, settle, and try."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.coupling import rules
from secateur.coupling.dyeing import Dye
from secateur.coupling.groups import Coupling
from secateur.coupling.running import results_of, run
from secateur.coupling.settling import hold_lonely, settle, settle_by_trial
from secateur.coupling.sizes import Sizes
from secateur.errors import UnknownName, UnknownOperation
from secateur.examples import Example, leaving_no_trace, plain_attention
from secateur.examples import run as run_on
from secateur.gradients import evaluating
from secateur.graphs import as_graph, batch_of
from secateur.layers import facts_of
from secateur.targets import Ignore, ignored_parameters

__all__ = ["couple"]

assert rules  # importing them registers them


def couple(
    model: nn.Module,
    example_inputs: Any,
    *,
    ignore: Ignore | Iterable[Ignore] = (),
    heads: str = "whole",
    norms: str = "hold",
    fallback: str | None = None,
) -> Coupling:
    """Find out which channels must leave together.

    The model is run once on the example, in eval mode without gradients, and left as it was. Inputs and outputs keep their sizes.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        ignore: layers whose channels stay; see `secateur.targets.find_targets`.
        heads: "whole": attention heads and convolution groups leave as a whole; "inside": the same index leaves from every one.
        norms: "hold": the width that a layer norm or RMS norm runs over stays, so that the narrowed model computes what the masked one
            does; "shrink": it may leave, and the statistics of what is left change.
        fallback: "graph": where a class has sizes written into its code that hold channels back, couple an exported graph of
            the model instead; `narrow` then returns a graph module. None: such channels stay.

    Returns:
        A `Coupling` with ``groups()`` and ``explain(layer)``.

    Raises:
        UnknownOperation: an operation that is not PyTorch's own has no rule, or one that holds everything; the message says which rule to add.
        WrongModel: the model does not run on the example.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> for group in couple(net, torch.zeros(1, 3, 8, 8)).groups():
    ...     print(group)
    8 x channel of 0.weight: 0.weight[0], 0.bias[0], 1.weight[0], 1.bias[0], 3.weight[1], 1.running_mean[0], 1.running_var[0]
    """
    _check(heads=heads, norms=norms, fallback=fallback)
    held = ignored_parameters(model, ignore)
    manner = {"whole": heads == "whole", "shrink": norms == "shrink"}
    try:
        own = _couple(model, example_inputs, held, manner)
    except UnknownOperation as error:
        if fallback is None:
            raise
        return _couple_graph(model, example_inputs, held, manner, [str(error)])
    why = list({held.operation: str(held) for held in reversed(own.dye.palette.held_by_code)}.values())[::-1]
    if fallback is None or not why:
        return own
    try:
        graph = _couple_graph(model, example_inputs, held, manner, why)
    except UnknownOperation as error:
        return replace(own, said=f"fallback='graph' did not help: {error}")
    return graph if graph.weights() > own.weights() else own


def _check(**given: str | None) -> None:
    for name, value in given.items():
        if value not in _WORDS[name]:
            words = " or ".join(repr(word) for word in _WORDS[name] if word)
            raise UnknownName(f"{name}={value!r} is not known: use {words}, or leave it out")


_WORDS: dict[str, tuple[str | None, ...]] = {
    "heads": ("whole", "inside"),
    "norms": ("hold", "shrink"),
    "fallback": ("graph", None),
}


def _couple_graph(
    model: nn.Module, example_inputs: Any, held: set[str], manner: dict[str, bool], why: list[str]
) -> Coupling:
    """Couple an exported graph of ``model``, and say why."""
    graph = as_graph(model, example_inputs)
    batch = batch_of(graph)
    more = f"; and {len(why) - 2} more classes" if len(why) > 2 else ""
    said = (
        f"Some channels cannot leave {type(model).__name__} in its own class ({'; '.join(why[:2])}{more}), so the result is an exported "
        f"graph that computes the same; its batch size is {'free' if batch is None else f'fixed to {batch}'}, its other sizes are fixed"
    )
    return replace(_couple(graph, example_inputs, held, manner, model), graph=graph, said=said)


def _couple(
    model: nn.Module, example_inputs: Any, held: set[str], manner: dict[str, bool], classes: nn.Module | None = None
) -> Coupling:
    """Couple what runs; ``classes`` is the model that a graph was made from."""
    classes = classes or model
    dye = Dye(model, **manner)
    sizes = Sizes(dye)
    generator = torch.get_rng_state()
    try:
        with (
            _telling_what_does_not_run(classes, example_inputs), torch.no_grad(), evaluating(model), _plain_kernels(classes),
            dye.watching(model), sizes.tracing(model),
        ):  # fmt: skip
            with sizes, dye:
                out = run(model, example_inputs)
            out = [out, _run_as_in_training(dye, sizes, model, example_inputs)]
    finally:
        torch.set_rng_state(generator)
    _hold_ends(dye, [tensor for one in out for tensor in results_of(model, one)], held)
    dye.layers.clear()
    parameters = frozenset(name for name, _ in model.named_parameters())
    kinds = _kinds(classes)
    start = Coupling(
        dye=dye, sizes=sizes, classes=torch.zeros(0, dtype=torch.long), parameters=parameters, found=(), kinds=kinds
    )
    found = settle_by_trial(model, example_inputs, hold_lonely(settle(start, kinds)), kinds, classes)
    if dye.unknown and not found.groups():
        raise UnknownOperation(dye.unknown)
    return found


@contextmanager
def _telling_what_does_not_run(model: nn.Module, example_inputs: Any) -> Iterator[None]:
    """An error of the model's own on this example is told as such."""
    try:
        yield
    except Exception:
        with leaving_no_trace(model):
            run_on(model, Example.of(example_inputs))
        raise


def _run_as_in_training(dye: Dye, sizes: Sizes, model: nn.Module, example_inputs: Any) -> Any:
    """Where parameters went unused, run once more in train mode: auxiliary heads work only there."""
    unread = dict(dye.unread)
    if not any(name in unread.values() for name, _ in model.named_parameters()):
        return None
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    try:
        with sizes, dye:
            return run(model.train(), example_inputs)
    except Exception:  # noqa: BLE001 - training may need more than the example, such as targets; then what is unused stays
        dye.unread = unread
        return None
    finally:
        model.eval()
        for buffer, before in buffers.items():
            buffer.copy_(before)


def _hold_ends(dye: Dye, results: list[Tensor], held: set[str]) -> None:
    dye.operation, dye.stack = "output", []
    for tensor in results:
        dye.use(tensor)
        for layer in dye.of(tensor):
            dye.freeze(layer, "reaches the model's output")
    dye.operation = "couple"
    for name in dye.unread.values():
        for colours in dye.owners.get(name, {}).values():
            dye.freeze(colours, "is not used in this example")
    dye.operation = "ignore"
    for name in held:
        for colours in dye.owners.get(name, {}).values():
            dye.freeze(colours, f"{name} is to be left alone")


@contextmanager
def _plain_kernels(model: nn.Module) -> Iterator[None]:
    """Let fused layers run as the operations they consist of, so that each can be seen."""
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    one = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(one and not recurrent)  # mkldnn.flags() warns about Intel GPUs on every machine
    try:
        with plain_attention():
            yield
    finally:
        torch._C._set_mkldnn_enabled(one)


def _kinds(model: nn.Module) -> dict[str, str]:
    """Parameter name to what its output channels are called and the dimension that holds them, ``"hidden/0"``."""
    words = {"linear": "hidden", "conv": "channel", "embedding": "width", "recurrent": "hidden", "attention": "head"}
    kinds = {}
    for path, module in model.named_modules():
        for attribute, facts in facts_of(module).items():
            dim = 1 if facts.kind == "embedding" else facts.out_dim
            kinds[f"{path}.{attribute}".lstrip(".")] = f"{words.get(facts.kind, 'channel')}/{dim}"
    return kinds
