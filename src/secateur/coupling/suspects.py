"""Which groups make a trial fail: the fewest that have to stay, found by trying some of them at a time.

A module that fails also holds groups that have nothing to do with it: beside attention that cannot lose a head stands an MLP that can
lose channels. Groups are therefore tried alone, and only those that fail are held, with the groups of their kind in other layers.
Groups whose widths one attribute gives are tried together, since one of them alone always fails.
"""

import re
from collections.abc import Callable, Iterable, Sequence

import torch

from secateur.coupling.groups import Coupling, Group
from secateur.coupling.traced import Origin, origins
from secateur.coupling.trial import Failure

__all__ = ["culprits"]

Try = Callable[[Sequence[int]], Failure | None]
Suspect = list[int]  # groups that leave together, by their place among the groups


def culprits(coupling: Coupling, failure: Failure, fails: Try) -> tuple[list[int], Failure]:
    """The groups to hold, and how the first of them fail.

    Args:
        coupling: what was found so far.
        failure: how the network fails when half of all groups leaves.
        fails: tries it with some of them, by their place among the groups.
    """
    groups = coupling.found
    order = sorted(_suspects(coupling), key=lambda some: not any(_touches(groups[k], failure.path) for k in some))
    size, found = _shortest(order, fails)
    first = order[size - 1]
    alone = fails(first)
    shape = _shape(groups[k] for k in first)
    alike = [some for some in order[size:] if _shape(groups[k] for k in some) == shape]
    if alike and alone and fails(alike[-1]):
        return _joined([first, *alike]), alone
    return first, alone or found or failure


def _shortest(order: list[Suspect], fails: Try) -> tuple[int, Failure | None]:
    """The size of the shortest beginning of ``order`` that fails; it doubles first, since suspects stand in front."""
    low, high, found = 0, 1, None
    while high < len(order):
        found = fails(_joined(order[:high]))
        if found is not None:
            break
        low, high = high, 2 * high
    high = min(high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        now = fails(_joined(order[:middle]))
        low, high, found = (low, middle, now) if now is not None else (middle, high, found)
    return high, found


def _suspects(coupling: Coupling) -> list[Suspect]:
    """The groups, those together whose widths come from one attribute."""
    of_class = torch.full((len(coupling.classes),), -1)
    for k, group in enumerate(coupling.found):
        for (name, dim), index in group.places.items():
            of_class[coupling.classes[coupling.dye.owners[name][dim][index.reshape(-1)]]] = k
    of_class[0] = -1
    leader = list(range(len(coupling.found)))
    by_origin: dict[Origin, int] = {}
    for use in coupling.sizes.uses:
        for k in torch.unique(of_class[coupling.classes[use.colours]]).tolist():
            for origin in origins(use.expression) if k >= 0 else ():
                _join(leader, k, by_origin.setdefault(origin, k))
    found: dict[int, Suspect] = {}
    for k in range(len(leader)):
        found.setdefault(_leads(leader, k), []).append(k)
    return list(found.values())


def _leads(leader: list[int], k: int) -> int:
    while leader[k] != k:
        k = leader[k]
    return k


def _join(leader: list[int], a: int, b: int) -> None:
    leader[_leads(leader, a)] = _leads(leader, b)


def _joined(order: Iterable[Suspect]) -> list[int]:
    return [k for some in order for k in some]


def _touches(group: Group, path: str) -> bool:
    return any(name.startswith(f"{path}.") for name, _ in group.places)


def _shape(groups: Iterable[Group]) -> list[tuple[str, int]]:
    """Where groups sit, whichever of several equal layers that is."""
    return [(re.sub(r"\d+", "#", name), dim) for group in groups for name, dim in group.places]
