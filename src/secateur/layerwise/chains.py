"""Blocks that run one after the other, each on what the one before gave: found by running the network once and looking.

A chain is what a network can be pruned along without ever running it whole: transformer layers, residual blocks, the items of a
``Sequential``. Children of `ModuleList` and `Sequential` are candidates; two are linked where the very tensor that one returns is the
first input of the next, unchanged, and everything else that they are given is the same for all.

Code can do more between blocks than tensors show: change one in place, set an attribute on a block, run under autocast. So a chain is tried
before it is used (`sound_chain`): run alone, it must give what it gave inside the network, with the caches that it is given as they were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.activations import run_hooked
from secateur.examples import leaving_no_trace
from secateur.renewing import opaque, renewed
from secateur.task import Task

__all__ = ["candidates", "chain_of", "first_of", "replays", "sound_chain", "through", "version_of"]

_TRIED = 8  # batches on which a chain is tried at most, the first and the last among them


@dataclass(eq=False)
class _Call:
    path: str
    first: Tensor | None
    rest: list[Any]
    out: Tensor | None = None
    version: int = 0
    times: int = 1
    starts: int = 0


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


def version_of(value: Any) -> int:
    """How often a tensor was changed in place; 0 where torch does not count (inference mode)."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def sound_chain(model: nn.Module, batches: Sequence[Any], task: Task | None = None) -> list[str]:
    """`chain_of` the first batch, if blocks that run alone give what they gave inside the network on every batch that is tried; else none.

    Args:
        model: run, without a trace.
        batches: in memory; some of them are tried.
        task: says how.
    """
    chain = chain_of(model, batches[0], task)
    if not chain:
        return []
    step = max(1, -(-(len(batches) - 1) // (_TRIED - 1)))
    tried = [*batches[:-1:step], batches[-1]]
    # all of them before the first is run again: blocks may hold a state that the last batch left
    seen = [through(model, chain, batch, task) for batch in tried]
    return chain if all(found is not None and replays(model, chain, *found) for found in seen) else []


def through(
    model: nn.Module, chain: Sequence[str], batch: Any, task: Task | None
) -> tuple[tuple[Any, ...], dict[str, Any], Tensor] | None:
    """What the first block takes in and the last one gives, as copies; None where the blocks do not run once each, in order."""
    order, kept = list[str](), list[Any]()

    def before(path: str, args: Any, kwargs: Any) -> None:
        order.append(path)
        if path == chain[0]:
            given = renewed((tuple(args), dict(kwargs)), model)
            kept.extend(tree_map(_copied, given, is_leaf=opaque))

    def after(out: Any) -> None:
        first = first_of(out)
        kept.append(None if first is None else first.clone())

    blocks = [model.get_submodule(path) for path in chain]
    handles = [
        block.register_forward_pre_hook(lambda _, a, k, path=path: before(path, a, k), with_kwargs=True)
        for path, block in zip(chain, blocks, strict=True)
    ]
    handles.append(blocks[-1].register_forward_hook(lambda _m, _a, out: after(out)))
    run_hooked(model, batch, task, handles)
    return (kept[0], kept[1], kept[2]) if order == list(chain) and kept[2] is not None else None


def replays(
    model: nn.Module,
    chain: Sequence[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    last: Tensor,
    *,
    read_only: bool = True,
) -> bool:
    """Whether the blocks alone give the same, and with ``read_only`` leave what they are given as it is."""
    versions = [version_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    flow = args
    try:
        for path in chain:
            block = model.get_submodule(path)
            own, named = renewed((flow, kwargs), model)
            with leaving_no_trace(block):
                out = first_of(block(*own, **named))
            if out is None:
                return False
            flow = (out, *flow[1:])
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    untouched = versions == [version_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    out = flow[0]
    return (untouched or not read_only) and out.shape == last.shape and out.dtype == last.dtype and _close(out, last)


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal but for the order of sums; NaN is like NaN."""
    largest = float(other.nan_to_num().abs().max()) if other.numel() else 0.0
    return torch.allclose(one.double(), other.double(), rtol=1e-3, atol=1e-4 * largest, equal_nan=True)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def first_of(out: Any) -> Tensor | None:
    """The tensor that a block hands on: what it returns, or the first entry of a tuple."""
    if isinstance(out, tuple | list) and out:
        out = out[0]
    return out if isinstance(out, Tensor) else None


def _linked(one: _Call, other: _Call) -> bool:
    if one.out is None or one.out is not other.first or one.times > 1 or other.times > 1:
        return False
    if one.version != other.starts:  # changed in between
        return False
    return len(one.rest) == len(other.rest) and all(map(_same, one.rest, other.rest))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    try:
        return one is other or (type(one) is type(other) and bool(one == other))
    except (ValueError, TypeError, RuntimeError):  # arrays and other things that do not say
        return False


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that may be blocks, with their paths: children of lists and sequences; of a sequence in a sequence its items. Not what lies inside a candidate."""

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
    paths = {module: path for path, module in candidates(model)}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if module in calls:
            calls[module].times += 1
            return
        first = args[0] if args and isinstance(args[0], Tensor) else None
        rest = [*args[1:], *tree_leaves(kwargs, is_leaf=opaque)]
        calls[module] = _Call(paths[module], first, rest, starts=version_of(first))

    def after(module: nn.Module, _args: Any, out: Any) -> None:
        calls[module].out = first = first_of(out)
        calls[module].version = version_of(first)

    handles = [m.register_forward_pre_hook(before, with_kwargs=True) for m in paths]
    handles += [m.register_forward_hook(after) for m in paths]
    run_hooked(model, batch, task, handles)
    return list(calls.values())
