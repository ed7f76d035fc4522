"""The 0/1 knapsack of pruning: which weights to keep so that their squares add up to the most within a budget.

    max over S of  sum over S of value   subject to  sum over S of cost <= room             value w^2, cost: energy per weight of its layer
                                                                                (Yang et al. 2019, ICLR, eq. 9: the projection onto E(W) <= B)
Items come in classes (layers); within a class they are sorted by value, and cost the same or ever more, so that a class keeps a prefix.

Greedy: best value per cost first, until one does not fit; then whatever still fits. It falls short of the best by less than the value of the
first item that did not fit (Dantzig 1957). Exact: an item whose value is further from  lambda * cost  than that gap is decided as in
the relaxation; the few others are searched with their bound (Balas & Zemel 1980, the core of the problem).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Choice", "keep_best"]

_SLACK = 1e-12


class Choice(NamedTuple):
    """What was chosen.

    Args:
        counts: how many of each class.
        value: the sum of what is kept.
        cost: what that costs.
        gap: by how much the best choice can be better at most.
    """

    counts: tuple[int, ...]
    value: float
    cost: float
    gap: float


def keep_best(values: Sequence[Tensor], costs: Sequence[Tensor], room: float, *, exact: bool = False) -> Choice:
    """Choose how many of each class to keep.

    Args:
        values: per class, ``[n]`` from the largest down, not negative.
        costs: per class, ``[n]`` from the smallest up, above zero.
        room: what all may cost.
        exact: search for the best instead of taking the greedy choice.

    >>> keep_best([torch.tensor([9.0, 4.0]), torch.tensor([8.0])], [torch.ones(2), torch.tensor([2.0])], room=3.0)
    Choice(counts=(1, 1), value=17.0, cost=3.0, gap=0.0)
    """
    sizes = [len(v) for v in values]
    value, cost = torch.cat(list(values)).double().cpu(), torch.cat(list(costs)).double().cpu()
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    order = torch.argsort(value / cost, descending=True, stable=True)
    spent = cost[order].cumsum(0)
    whole = int((spent <= room * (1 + _SLACK)).sum())
    keep = torch.zeros(len(value), dtype=torch.bool)
    keep[order[:whole]] = True
    if whole == len(value):
        return _choice(keep, value, cost, owner, (len(sizes), 0.0))
    left = room - (float(spent[whole - 1]) if whole else 0.0)
    first = order[whole]
    price = float(value[first] / cost[first])
    bound = float(value[keep].sum()) + left * price
    _fill(keep, cost, owner, order[whole:], left)
    gap = max(0.0, bound - float(value[keep].sum()))
    if exact and gap > 0:
        keep = _core(keep, value, cost, owner, room, price=price, gap=gap)
        gap = 0.0
    return _choice(keep, value, cost, owner, (len(sizes), gap))


def _fill(keep: Tensor, cost: Tensor, owner: Tensor, rest: Tensor, left: float) -> None:
    """Keep on taking, in order, what still fits; a class is closed once one of it did not."""
    closed: set[int] = set()
    cheapest = {c: float(cost[owner == c].min()) for c in set(owner.tolist())}
    for item in rest.tolist():
        mine = int(owner[item])
        if mine in closed:
            continue
        if float(cost[item]) <= left:
            keep[item], left = True, left - float(cost[item])
        else:
            closed.add(mine)
        if len(closed) == len(cheapest) or left < min(c for k, c in cheapest.items() if k not in closed):
            return


def _core(keep: Tensor, value: Tensor, cost: Tensor, owner: Tensor, room: float, *, price: float, gap: float) -> Tensor:
    """The best choice, by searching the items that the relaxation does not decide."""
    loss = value - price * cost
    open_ = (loss.abs() <= gap * (1 + 1e-9)).nonzero().flatten()
    sure = (loss > 0) & ~torch.isin(torch.arange(len(value)), open_)
    left = room - float(cost[sure].sum())
    items = open_[torch.argsort(value[open_] / cost[open_], descending=True, stable=True)].tolist()
    best = float(value[keep].sum() - value[sure].sum())
    # states: cost -> (value, chosen); only those that no other beats in both, and whose bound reaches the best so far
    states: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    chosen: tuple[int, ...] = tuple(i for i in items if bool(keep[i]))
    for place, item in enumerate(items):
        c, v = float(cost[item]), float(value[item])
        grown = [(s + c, w + v, (*had, item)) for s, w, had in states if s + c <= left * (1 + _SLACK) + _SLACK]
        states = _undominated([*states, *grown])
        top = max(states, key=lambda s: s[1])
        if top[1] > best:
            best, chosen = top[1], top[2]
        rate = 0.0
        if place + 1 < len(items):
            following = items[place + 1]
            rate = float(value[following] / cost[following])
        states = [s for s in states if s[1] + (left - s[0]) * rate > best]
        if not states:
            break
    found = sure.clone()
    found[list(chosen)] = True
    return _prefixes(found, owner)


def _undominated(states: list[tuple[float, float, tuple[int, ...]]]) -> list[tuple[float, float, tuple[int, ...]]]:
    kept, most = [], -1.0
    for state in sorted(states, key=lambda s: (s[0], -s[1])):
        if state[1] > most:
            kept.append(state)
            most = state[1]
    return kept


def _prefixes(keep: Tensor, owner: Tensor) -> Tensor:
    """The same number of every class, its first ones: no worse in value, no dearer."""
    found = torch.zeros_like(keep)
    for mine in set(owner.tolist()):
        places = (owner == mine).nonzero().flatten()
        found[places[: int(keep[places].sum())]] = True
    return found


def _choice(keep: Tensor, value: Tensor, cost: Tensor, owner: Tensor, about: tuple[int, float]) -> Choice:
    classes, gap = about
    counts = torch.bincount(owner[keep], minlength=classes).tolist()
    return Choice(tuple(counts), float(value[keep].sum()), float(cost[keep].sum()), gap)
