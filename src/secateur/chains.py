"""Blocks that run one after the other, each on what the one before gave: found by running the network once and looking.

A chain is what a network can be pruned along without ever running it whole: transformer layers, residual blocks, the items of a
``Sequential``. Children of `ModuleList` and `Sequential` are candidates; two are linked where the very tensor that one returns is the
first input of the next, and everything else that they are given is the same for all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.activations import run_batch
from secateur.examples import leaving_no_trace
from secateur.task import Task

__all__ = ["chain_of", "first_of"]


@dataclass(eq=False)
class _Call:
    path: str
    first: Tensor | None
    rest: list[Any]
    out: Tensor | None = None
    times: int = 1


def chain_of(model: nn.Module, batch: Any, task: Task | None = None) -> list[str]:
    """The paths of the longest chain of blocks, in running order; empty where there is none of two or more.

    Args:
        model: run once, without a trace.
        batch: what it is run on.
        task: says how.

    >>> chain_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 4))
    ['0', '1', '2']
    """
    calls = _listen(model, batch, task)
    chains: list[list[_Call]] = []
    for call in calls:
        linked = next((chain for chain in chains if _linked(chain[-1], call)), None)
        if linked is None:
            chains.append([call])
        else:
            linked.append(call)
    sizes = {path: sum(p.numel() for p in module.parameters()) for path, module in model.named_modules()}
    best = max(chains, key=lambda chain: sum(sizes[call.path] for call in chain), default=[])
    return [call.path for call in best] if len(best) > 1 else []


def first_of(out: Any) -> Tensor | None:
    """The tensor that a block hands on: what it returns, or the first entry of a tuple."""
    if isinstance(out, tuple | list) and out:
        out = out[0]
    return out if isinstance(out, Tensor) else None


def _linked(one: _Call, other: _Call) -> bool:
    if one.out is None or one.out is not other.first or one.times > 1 or other.times > 1:
        return False
    return len(one.rest) == len(other.rest) and all(map(_same, one.rest, other.rest))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    return one is other or (type(one) is type(other) and bool(one == other))


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of lists and sequences; of a sequence in a sequence its items. Not what lies inside a candidate."""

    def walk(path: str, module: nn.Module, *, inside: bool) -> Iterator[tuple[str, nn.Module]]:
        is_list = type(module) in (nn.Sequential, nn.ModuleList)
        if inside and not is_list:
            yield path, module
            return
        for name, child in module.named_children():
            yield from walk(f"{path}.{name}".lstrip("."), child, inside=is_list)

    yield from walk("", model, inside=False)


def _listen(model: nn.Module, batch: Any, task: Task | None) -> list[_Call]:
    calls: dict[nn.Module, _Call] = {}
    paths = {module: path for path, module in _candidates(model)}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if module in calls:
            calls[module].times += 1
            return
        first = args[0] if args and isinstance(args[0], Tensor) else None
        rest = [*args[1:], *tree_leaves(kwargs)]
        calls[module] = _Call(paths[module], first, rest)

    def after(module: nn.Module, _args: Any, out: Any) -> None:
        calls[module].out = first_of(out)

    handles = [m.register_forward_pre_hook(before, with_kwargs=True) for m in paths]
    handles += [m.register_forward_hook(after) for m in paths]
    try:
        with leaving_no_trace(model):
            run_batch(model, batch, task)
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.values())
