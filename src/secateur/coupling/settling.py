"""After the run: keep every tensor rectangular, and keep what the network's code cannot follow."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.coupling.dyeing import Dye
from secateur.coupling.groups import Coupling, find_groups
from secateur.coupling.palette import Freeze
from secateur.coupling.solving import SizesDisagree
from secateur.coupling.trial import Failure, try_structure
from secateur.errors import UnknownOperation

__all__ = ["settle", "settle_by_trial"]

_ROUNDS = 40
_PATIENCE = 6  # after so many groups that one class fails with, all groups of the class are held at once


def settle(coupling: Coupling, kinds: dict[str, str]) -> Coupling:
    """Find classes and groups anew from all ties and freezes so far."""
    classes = settle_tables(coupling.dye)
    return replace(coupling, classes=classes, found=find_groups(coupling.dye, classes, coupling.parameters, kinds))


def settle_tables(dye: Dye) -> Tensor:
    """Tie until what leaves any tensor is whole slabs along one of its axes; the axis that costs least is taken."""
    classes = dye.palette.settle()
    while True:
        changed = False
        for table in dye.tables.values():
            now = classes[table]
            if not now.any():
                continue
            best = max(range(now.dim()), key=lambda d, now=now: _free_slabs(now, d))  # type: ignore[misc]
            if not torch.equal(_first(now, best).expand_as(now), now):
                dye.tie(table, _first(table, best).expand_as(table))
                changed = True
        if not changed:
            return classes
        classes = dye.palette.settle()


def settle_by_trial(
    model: nn.Module, example_inputs: Any, coupling: Coupling, kinds: dict[str, str], classes: nn.Module | None = None
) -> Coupling:
    """Offer only groups that survive a trial: half of each leaves a copy without data, and that copy runs.

    ``classes`` is the model that a graph was made from: what fails is blamed on its modules.
    """
    modules = dict((classes or model).named_modules())
    blamed: set[tuple[str, bool]] = set()
    alone: list[str] = []  # classes of modules that one group was blamed for
    failure: Failure | None = None
    for _ in range(_ROUNDS):
        everything = range(len(coupling.found))
        failure = _try_without(model, example_inputs, coupling, everything)
        if failure is None:
            return coupling
        kind = type(modules[failure.path]).__name__
        culprit = None if alone.count(kind) >= _PATIENCE else _culprit(model, example_inputs, coupling, failure)
        if culprit is not None:
            alone.append(kind)
            coupling.freeze(culprit, _why(modules, failure))
            coupling.dye.palette.held_by_code.append(_why(modules, failure))
        elif not _blame(modules, coupling, failure, blamed):
            break
        coupling = settle(coupling, kinds)
    assert failure is not None
    raise UnknownOperation(
        f"narrowing {type(model).__name__} fails in '{failure.path}', whatever is left alone there: {failure.error}"
    ) from failure.error


def _try_without(model: nn.Module, example_inputs: Any, coupling: Coupling, groups: Iterable[int]) -> Failure | None:
    """Take half of the units of ``groups`` out of a copy without data and run it."""
    found = {k: coupling.found[k].units for k in groups}
    leaving = {k: torch.arange(units) >= max(1, units // 2) for k, units in found.items()}
    try:
        return try_structure(model, example_inputs, coupling.structure(coupling.gone(leaving)))
    except SizesDisagree as error:
        return Failure(error.path, error)


def _culprit(model: nn.Module, example_inputs: Any, coupling: Coupling, failure: Failure) -> int | None:
    """The one group whose half makes the model fail, found by halving; None where it takes several at once."""
    prefix = f"{failure.path}." if failure.path else ""
    suspects = [k for k, g in enumerate(coupling.found) if any(n.startswith(prefix) for n, _ in g.places)]
    if not suspects or _try_without(model, example_inputs, coupling, suspects) is None:
        return None
    while len(suspects) > 1:
        middle = len(suspects) // 2
        for half in (suspects[:middle], suspects[middle:]):
            if _try_without(model, example_inputs, coupling, half) is not None:
                suspects = half
                break
        else:
            return None
    return suspects[0]


def _why(modules: dict[str, nn.Module], failure: Failure) -> Freeze:
    kind = type(modules[failure.path]).__name__
    said = str(failure.error).strip().splitlines()[0][:160]
    return Freeze(kind, failure.path, f"the code of {kind} cannot follow: {said}")


def _blame(modules: dict[str, nn.Module], coupling: Coupling, failure: Failure, blamed: set[tuple[str, bool]]) -> bool:
    """Freeze the groups inside the failing module and others of its class; go outwards until something changes."""
    path = failure.path
    if path and type(modules[path]).__module__.startswith("torch.nn") and not list(modules[path].children()):
        path = path.rpartition(".")[0]  # a torch layer is never wrong by itself: whoever calls it is
    while True:
        for wide in (False, True):
            if (path, wide) not in blamed:
                blamed.add((path, wide))
                if _freeze_inside(modules, coupling, path, failure, wide=wide):
                    return True
        if not path:
            return False
        path = path.rpartition(".")[0]


def _freeze_inside(
    modules: dict[str, nn.Module], coupling: Coupling, path: str, failure: Failure, *, wide: bool
) -> bool:
    kind, why, hit = type(modules[path]), replace(_why(modules, failure), module=path), False
    prefixes = tuple(f"{p}." if p else "" for p, m in modules.items() if type(m) is kind)
    for k, group in enumerate(coupling.found):
        names = [name for name, _ in group.places]
        inside = any((any if wide else all)(name.startswith(prefix) for name in names) for prefix in prefixes)
        if inside:
            coupling.freeze(k, why)
            hit = True
    if hit:
        coupling.dye.palette.held_by_code.append(why)
    return hit


def _first(t: Tensor, axis: int) -> Tensor:
    for d in range(t.dim()):
        if d != axis:
            t = t.narrow(d, 0, 1)
    return t


def _free_slabs(now: Tensor, axis: int) -> int:
    """How many units stay apart if slabs along ``axis`` leave whole; most of all if they already do."""
    if torch.equal(_first(now, axis).expand_as(now), now):
        return 1 << 30
    rows = now.movedim(axis, 0).reshape(now.shape[axis], -1)
    values, place = torch.unique(rows, return_inverse=True)
    label = torch.arange(len(rows))
    while True:  # slabs that share a class leave together
        low = torch.full((len(values),), len(rows)).scatter_reduce_(
            0, place.reshape(-1), label[:, None].expand_as(place).reshape(-1), "amin"
        )
        fresh = low[place].amin(1)
        if torch.equal(fresh, label):
            break
        label = fresh
    return len(set(label.tolist()) - set(label[(rows == 0).any(1)].tolist()))
