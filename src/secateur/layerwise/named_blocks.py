"""Blocks that a user names: taken as the chain they are said to be, if they are one."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from secateur.activations import run_hooked
from secateur.errors import UnknownName
from secateur.layerwise.chains import candidates, replays, sound_chain, through
from secateur.task import Task

__all__ = ["chosen_chain", "named_chain"]


def named_chain(model: nn.Module, paths: Sequence[str], batch: Any, task: Task | None = None) -> list[str]:
    """The paths of blocks that a user names, tried on ``batch``, where all of them run on it.

    Raises:
        UnknownName: there is no such block, or one lies inside another; they run in another order, or several times, or alone they
            give something else than inside the network.
    """
    known = {path for path, _ in model.named_modules()} - {""}
    for path in paths:
        if path not in known:
            some = ", ".join(sorted(_path for _path, _ in candidates(model))[:4]) or ", ".join(sorted(known)[:4])
            raise UnknownName(
                f"blocks= names {path!r}, but {type(model).__name__} has no such module; it has {some}, ..."
            )
    inside = [one for one in paths for other in paths if one.startswith(f"{other}.")]
    if inside or len(set(paths)) < len(paths):
        raise UnknownName(
            f"blocks= names {inside[0] if inside else 'a block'!r} twice, alone or inside another block: name each once, in running order"
        )
    order = _order(model, paths, batch, task)
    if set(order) == set(paths) and order != list(paths):
        again = next((path for path in paths if order.count(path) > 1), None)
        wrong = (
            "are not in the order in which they run" if again is None else f"are no chain: {again!r} runs several times"
        )
        raise UnknownName(f"blocks={tuple(paths)} {wrong}; {type(model).__name__} runs {', '.join(map(repr, order))}")
    found = through(model, paths, batch, task) if order == list(paths) else None
    if found is not None and not all(replays(model, paths, *found, read_only=False) for _ in range(2)):
        raise UnknownName(
            f"blocks={tuple(paths)}, run alone, each on what the one before gave, do not give what they give inside {type(model).__name__}: "
            "something runs between two of them, or each is given something of its own. Name all blocks of a chain, or leave blocks= out"
        )
    return list(paths)


def chosen_chain(model: nn.Module, named: Sequence[str] | None, batches: Sequence[Any], task: Task | None) -> list[str]:
    """The blocks that are ``named``; where none are, those that are found."""
    return named_chain(model, named, batches[0], task) if named else sound_chain(model, batches, task)


def _order(model: nn.Module, paths: Sequence[str], batch: Any, task: Task | None) -> list[str]:
    """Which of the modules ``paths`` run on a batch, in order."""
    order = list[str]()
    modules = {path: model.get_submodule(path) for path in paths}
    hooks = [m.register_forward_pre_hook(lambda _m, _a, path=path: order.append(path)) for path, m in modules.items()]
    run_hooked(model, batch, task, hooks)
    return order
