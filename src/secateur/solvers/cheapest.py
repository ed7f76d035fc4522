"""The 0/1 knapsack of pruning: which weights to keep so that their squares add up to the most within a budget.

    max over S of  sum over S of value   subject to  sum over S of cost <= room             value w^2, cost: energy per weight of its layer
                                                                                (Yang et al. 2019, ICLR, eq. 9: the projection onto E(W) <= B)
Items come in classes (layers); within a class they are sorted by value, and cost the same or ever more, so that a class keeps a prefix.

Greedy: best value per cost first, until one does not fit; then whatever still fits. It falls short of the best by less than the value of the
first item that did not fit (Dantzig 1957). Exact: counts of a class that lose more than that gap against the relaxation are out of the
question; the few others (the core of the problem, Balas & Zemel 1980) are searched class by class.
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

    >>> keep_best([torch.tensor([9.0, 4.0]), torch.tensor([8.0])], [torch.ones(2), torch.tensor([2.0])], room=3.0, exact=True)
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
        counts = _core(values, costs, room, price=price, gap=gap)
        keep = keep if counts is None else torch.cat([torch.arange(n) < k for n, k in zip(sizes, counts, strict=True)])
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


def _core(
    values: Sequence[Tensor], costs: Sequence[Tensor], room: float, *, price: float, gap: float
) -> tuple[int, ...] | None:
    """The counts of the best choice, if one is better than the greedy one: dynamic programming over the classes.

    Keeping n of class k loses  loss_k(n) = max over m of R_k(m) - R_k(n) >= 0  against the relaxation,  R_k(n) = value - price * cost  of the
    first n. What a choice falls short of the bound by is the sum of its losses and price * (room it leaves): only sums below ``gap`` matter.
    """
    cost, loss = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    trail: list[tuple[Tensor, Tensor]] = []  # of every state after class k: the state before, and how many are kept
    for v, c in zip(values, costs, strict=True):
        spent = torch.cat([c.new_zeros(1).double(), c.double().cpu().cumsum(0)])
        worth = torch.cat([v.new_zeros(1).double(), v.double().cpu().cumsum(0)]) - price * spent
        lost = worth.max() - worth
        counts = (lost < gap).nonzero().flatten()
        sums, losses = (cost[:, None] + spent[counts]).flatten(), (loss[:, None] + lost[counts]).flatten()
        states = ((sums <= room * (1 + _SLACK)) & (losses < gap)).nonzero().flatten()
        # of two states that cost the same or less, the one worth less is useless: worth is  price * cost - loss  here, plus what all share
        order = states[torch.argsort(sums[states], stable=True)]
        gain = price * sums[order] - losses[order]
        before = torch.cat([gain.new_full((1,), -torch.inf), gain.cummax(0).values[:-1]])[: len(gain)]
        order = order[gain > before]
        trail.append((order // len(counts), counts[order % len(counts)]))
        cost, loss = sums[order], losses[order]
    if not len(cost):
        return None
    short = loss + price * (room - cost)
    state = int(short.argmin())
    if float(short[state]) >= gap * (1 - 1e-12):
        return None
    found = []
    for previous, kept in reversed(trail):
        found.append(int(kept[state]))
        state = int(previous[state])
    return tuple(reversed(found))


def _choice(keep: Tensor, value: Tensor, cost: Tensor, owner: Tensor, about: tuple[int, float]) -> Choice:
    classes, gap = about
    counts = torch.bincount(owner[keep], minlength=classes).tolist()
    return Choice(tuple(counts), float(value[keep].sum()), float(cost[keep].sum()), gap)
