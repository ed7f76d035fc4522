"""The layers that a network is a chain of, at work: what each of them took in and gave on one batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.activations import run_hooked
from secateur.errors import UnknownLayer
from secateur.layerwise.chains import chain_of, version_of
from secateur.task import Task

__all__ = ["Call", "chain_of_calls"]


@dataclass(eq=False)
class Call:
    """A layer at work: what it took in, as a copy and as the tensor that it was, and what it gave."""

    module: nn.Module
    x: Tensor
    source: Tensor
    since: int  # how often the source had been changed in place
    out: Tensor | None = None
    version: int = 0


def chain_of_calls(model: nn.Module, batch: Any, task: Task) -> tuple[list[Call], Tensor]:
    """The calls that lead from what the network is given to what it gives, one by one, and that.

    Raises:
        UnknownLayer: something else happens on the way.
    """
    calls, given, answers = _listen(model, batch, task)
    answer = answers[0] if len(answers) == 1 and isinstance(answers[0], Tensor) else None
    at = len(calls)
    chain: list[Call] = []
    while answer is not None:
        before = [k for k in range(at) if _gave(calls[k], chain[0] if chain else answer)]
        if not before:
            break
        at = before[-1]
        chain.insert(0, calls[at])
    if answer is not None and chain and any(_same(chain[0].x, x) for x in given):
        return chain, answer
    layers = [model.get_submodule(path) for path in chain_of(model, batch, task)]
    if not layers:
        raise UnknownLayer(f"{type(model).__name__} is no chain of layers; diagonal='hutchinson' works for any network")
    names = ", ".join(type(module).__name__ for module in layers[:4])
    raise UnknownLayer(
        f"{type(model).__name__} computes more than its chain of {len(layers)} layers ({names}, ...), which is all that the recursion goes "
        "through; diagonal='hutchinson' works for any network"
    )


def _gave(call: Call, what: Call | Tensor) -> bool:
    """Whether a call gave what another one took in, the very tensor, or what the network gives, at least in numbers."""
    if call.out is None:
        return False
    if isinstance(what, Tensor):
        return _same(call.out, what)
    return call.out is what.source and call.version == what.since


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _listen(model: nn.Module, batch: Any, task: Task) -> tuple[list[Call], list[Tensor], list[Any]]:
    """Every call of a layer, in order; what the network is given; what it gives, each time that it is run."""
    calls, given, answers = list[Call](), list[Tensor](), list[Any]()

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if module is model:
            given.extend(leaf.clone() for leaf in leaves)
        if leaves and not list(module.children()):
            calls.append(Call(module, leaves[0].clone(), leaves[0], version_of(leaves[0])))

    def after(module: nn.Module, _args: Any, out: Any) -> None:
        if module is model:
            answers.append(out.clone() if isinstance(out, Tensor) else out)
        if calls and calls[-1].module is module and isinstance(out, Tensor):
            calls[-1].out, calls[-1].version = out, version_of(out)

    layers = {module for module in model.modules() if not list(module.children())} | {model}
    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    run_hooked(model, batch, task, hooks)
    return calls, given, answers
