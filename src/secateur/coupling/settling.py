"""After the run: keep every tensor rectangular, and keep what the network's code cannot follow."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.coupling.dyeing import Dye
from secateur.coupling.groups import Coupling, find_groups
from secateur.coupling.palette import Freeze
from secateur.coupling.solving import SizesDisagree
from secateur.coupling.suspects import culprits
from secateur.coupling.trial import Failure, Trial
from secateur.errors import UnknownOperation

__all__ = ["hold_lonely", "settle", "settle_by_trial"]

_PRECISE = 24  # rounds that look for single groups; then whole modules are held, which always ends
_ROUNDS = _PRECISE + 32


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


def hold_lonely(coupling: Coupling) -> Coupling:
    """Hold what meets no other layer: positions beyond the example's length, which longer inputs need, and what only reads a table."""
    own = [[place for place in group.places if place[0] in coupling.parameters] for group in coupling.found]
    lonely = [k for k, places in enumerate(own) if len(places) == 1]
    for k in lonely:
        coupling.freeze(k, Freeze("couple", "", "meets no other layer in this example"))
    return settle(coupling, coupling.kinds) if lonely else coupling


def settle_by_trial(
    model: nn.Module,
    example_inputs: Any,
    coupling: Coupling,
    kinds: dict[str, str],
    classes: nn.Module | None = None,
    *,
    widths: str = "half",
) -> Coupling:
    """Offer only groups that survive a trial: half of each leaves a copy without data, and that copy runs.

    ``classes`` is the model that a graph was made from: what fails is blamed on its modules. With ``widths="any"`` one unit of each leaves,
    which also fails where code takes several times an attribute, ``view(-1, 4 * self.c)``, and so allows only some widths.
    """
    modules = dict((classes or model).named_modules())
    trial = partial(_leaving, Trial(model, example_inputs), widths)
    blamed: set[tuple[str, bool]] = set()
    for attempt in range(_ROUNDS):
        if not coupling.found:
            return coupling
        everything = range(len(coupling.found))
        failure = trial(coupling, everything)
        if failure is None:
            return coupling
        if attempt < _PRECISE:
            held, failure = culprits(coupling, failure, partial(trial, coupling))
            _hold(modules, coupling, held, failure)
        elif not _blame(modules, coupling, failure, blamed):
            break
        coupling = settle(coupling, kinds)
    assert failure is not None
    raise UnknownOperation(
        f"narrowing {type(model).__name__} fails in '{failure.path}', whatever is left alone there: {failure.error}"
    ) from failure.error


def _leaving(trial: Trial, widths: str, coupling: Coupling, chosen: Iterable[int]) -> Failure | None:
    """Take half of each of these groups, or one unit, out of a copy and run it."""
    units = {k: coupling.found[k].units for k in chosen}
    left = {k: max(1, n // 2 if widths == "half" else n - 1) for k, n in units.items()}
    leaving = {k: torch.arange(n) >= left[k] for k, n in units.items()}
    try:
        return trial(coupling.structure(coupling.gone(leaving)))
    except SizesDisagree as error:
        return Failure(error.path, error)


def _hold(modules: dict[str, nn.Module], coupling: Coupling, held: Iterable[int], failure: Failure) -> None:
    why = _reason(modules, _caller(modules, failure.path), failure)
    for k in held:
        coupling.freeze(k, why)
    coupling.dye.palette.held_by_code.append(why)


def _caller(modules: dict[str, nn.Module], path: str) -> str:
    """A torch layer is never wrong by itself: whoever calls it is."""
    if path and type(modules[path]).__module__.startswith("torch.nn") and not list(modules[path].children()):
        return path.rpartition(".")[0]
    return path


def _reason(modules: dict[str, nn.Module], path: str, failure: Failure) -> Freeze:
    kind = type(modules[path]).__name__
    said = str(failure.error).strip() or type(failure.error).__name__
    return Freeze(kind, path, f"the code of {kind} cannot follow: {said.splitlines()[0][:160]}")


def _blame(modules: dict[str, nn.Module], coupling: Coupling, failure: Failure, blamed: set[tuple[str, bool]]) -> bool:
    """Freeze the groups inside the failing module and others of its class; go outwards until something changes."""
    path = _caller(modules, failure.path)
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
    kind = type(modules[path])
    prefixes = tuple(f"{p}." if p else "" for p, m in modules.items() if type(m) is kind)
    why, hit = _reason(modules, path, failure), False
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
