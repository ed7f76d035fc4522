"""Quotas: which names share how many units that stay, read off an allocation, for methods that choose unit after unit by scores that change.

    `Global`        one quota over all names, with a floor under each
    `PerLayer`      the named ones each by itself; the others as their own allocation says
    any other       each name by itself

Floors and quotas are nested, so taking units in order of their scores, where name and quota still allow it, is the best choice of a stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from secateur.allocations.global_ import Global
from secateur.allocations.per_layer import PerLayer
from secateur.counting import lookup_per_layer
from secateur.protocols import Allocation
from secateur.units import Units

__all__ = ["Quota", "leaving", "quotas_of"]


@final
@dataclass(frozen=True)
class Quota:
    """Of all units under ``names``, ``keep`` stay, and ``least`` under each name (or all there are)."""

    names: tuple[str, ...]
    keep: int
    least: int = 0


def quotas_of(allocation: Allocation, units: Units) -> tuple[Quota, ...]:
    """What an allocation asks for, without saying where under a quota of several names.

    Raises:
        BadSparsity, UnknownName: see the allocation.
    """
    counts = dict(allocation(units))
    if isinstance(allocation, Global):
        return (Quota(tuple(units), sum(counts.values()), allocation.min_kept),)
    if isinstance(allocation, PerLayer):
        named = lookup_per_layer(dict(allocation.sparsities), list(units), "overrides")
        others = units.only([name for name in units if name not in named])
        rest = quotas_of(allocation.otherwise, others) if others else ()
        return (*(Quota((name,), counts[name]) for name in named), *rest)
    return tuple(Quota((name,), count) for name, count in counts.items())


def leaving(scores: Tensor, sizes: Mapping[str, int], quotas: Sequence[Quota], count: int) -> Tensor:
    """The ``count`` units of least score that quotas let go, the least first; indices into ``scores``.

    Args:
        scores: of all names in the order of ``sizes``, one-dimensional; infinite for units that are gone.
        sizes: units under each name.
        quotas: every name is in one of them.
        count: how many leave, at most as many as may.

    >>> leaving(torch.tensor([1.0, 2.0, 3.0, 4.0]), {"a": 2, "b": 2}, [Quota(("a", "b"), 2, least=1)], 2).tolist()
    [0, 2]
    """
    order = scores.argsort(stable=True)
    if len(quotas) == 1 and not quotas[0].least:
        return order[:count]
    parts = dict(zip(sizes, torch.split(scores, list(sizes.values())), strict=True))
    starts = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
    allowed = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    for quota in quotas:
        left = {name: int(parts[name].isfinite().sum()) for name in quota.names}
        free = [
            starts[name] + parts[name].argsort(stable=True)[: left[name] - min(quota.least, left[name])]
            for name in quota.names
        ]
        among = torch.cat(free)
        among = among[scores[among].argsort(stable=True)]
        allowed[among[: max(0, sum(left.values()) - quota.keep)]] = True
    return order[allowed[order]][:count]
