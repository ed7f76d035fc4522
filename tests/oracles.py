"""The slow, obvious versions: Python loops over single weights, nothing shared with the library but the words."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import product
from typing import Any

import torch
from torch import Tensor

Place = tuple[int, ...]
Unit = tuple[Any, Any]  # (group, unit): tuples that sort in the library's order


def canonical_place(index: Place, shape: tuple[int, ...], layout: str = "", groups: int = 1) -> tuple[int, int, Place]:
    """(output channel, input channel of its group, kernel position) of one weight."""
    if len(index) < 2:
        return (index[0] if index else 0), 0, ()
    if layout == "swapped":  # [in, out, ...]
        return index[1], index[0], index[2:]
    if layout == "transposed":  # [in, out / groups, ...]
        per_group = shape[0] // groups
        return index[0] // per_group * shape[1] + index[1], index[0] % per_group, index[2:]
    return index[0], index[1], index[2:]


def unit_of(granularity: str, flat: int, place: tuple[int, int, Place]) -> Unit:
    """Which (group, unit) a weight belongs to."""
    o, i, k = place
    if granularity == "unstructured":
        return (), flat
    if granularity == "row":
        return o, (i, k)
    if granularity.startswith("block:"):
        rows, columns = (int(side) for side in granularity.removeprefix("block:").split("x"))
        return (), (o // rows, i // columns, k)
    if ":" in granularity:
        m = int(granularity.split(":")[1])
        return (o, k, i // m), i % m
    return (), {"filter": o, "kernel": (o, i), "input_channel": i, "shape": (i, k)}[granularity]


def units_of(
    values: Tensor, granularity: str, layout: str = "", groups: int = 1
) -> tuple[dict[Unit, list[int]], dict[Unit, Fraction | float]]:
    """The weights of every unit (as flat indices) and its score, the plain sum; both in the library's order."""
    shape, flat_values = tuple(values.shape), values.reshape(-1).tolist()
    members: dict[Unit, list[int]] = {}
    for flat, index in enumerate(product(*(range(size) for size in shape))):
        members.setdefault(unit_of(granularity, flat, canonical_place(index, shape, layout, groups)), []).append(flat)
    members = {unit: members[unit] for unit in sorted(members)}
    return members, {unit: sum(flat_values[flat] for flat in flats) for unit, flats in members.items()}


def top(scores: Mapping[Any, Any], count: int) -> set[Any]:
    """The ``count`` largest; ties go to the earlier one."""
    order = sorted(enumerate(scores), key=lambda pair: (-scores[pair[1]], pair[0]))
    return {key for _, key in order[:count]}


def counts_globally(tables: Mapping[str, Mapping[Unit, Any]], keep: int, min_kept: int = 0) -> dict[str, int]:
    """Sort everything in one list; a layer below its floor is set to it and the others are ranked anew."""
    fixed: dict[str, int] = {}
    while True:
        free = {(name, unit): s for name, table in tables.items() if name not in fixed for unit, s in table.items()}
        chosen = top(free, keep - sum(fixed.values()))
        counts = {name: sum(1 for n, _ in chosen if n == name) for name in tables} | fixed
        low = [name for name in tables if counts[name] < min(min_kept, len(tables[name]))]
        if not low:
            return counts
        fixed |= {name: min(min_kept, len(tables[name])) for name in low}


def lamp(table: Mapping[Unit, Any]) -> dict[Unit, Fraction]:
    """Lee et al. 2021, eq. 1, in exact arithmetic; of equal scores the earlier one counts as the larger."""
    ranked = sorted(enumerate(table), key=lambda pair: (-table[pair[1]], pair[0]))
    found, total = {}, Fraction(0)
    for _, unit in ranked:
        square = Fraction(max(table[unit], 0)) ** 2
        total += square
        found[unit] = square / total if total else Fraction(0)
    return {unit: found[unit] for unit in table}


def water_level(
    shares: Mapping[str, Fraction], keep: int, limits: Mapping[str, int], floors: Mapping[str, int]
) -> dict[str, float]:
    """Real-valued amounts ``min(limit, max(floor, level * share))`` whose sum is ``keep``; the level by bisection."""

    def poured(level: Fraction) -> dict[str, Fraction]:
        return {n: min(Fraction(limits[n]), max(Fraction(floors[n]), level * shares[n])) for n in shares}

    low, high = Fraction(0), Fraction(1)
    while sum(poured(high).values()) < min(keep, sum(limits.values())):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(poured(middle).values()) < keep else (low, middle)
    return {name: float(amount) for name, amount in poured(high).items()}


def erk_share(shape: tuple[int, ...], units: int) -> Fraction:
    """(sum of sizes / product of sizes) times the units of the layer."""
    size = 1
    for side in shape:
        size *= side
    return Fraction(sum(shape), max(1, size)) * units if shape else Fraction(2) * units


def select(table: Mapping[Unit, Any], count: int) -> set[Unit]:
    """The best ``count`` of one layer, spread evenly over its groups, the first groups taking what is left over."""
    groups: dict[Any, dict[Unit, Any]] = {}
    for unit, score in table.items():
        groups.setdefault(unit[0], {})[unit] = score
    each, extra = divmod(count, max(1, len(groups)))
    kept: set[Unit] = set()
    for number, group in enumerate(groups.values()):
        kept |= top(group, each + (number < extra))
    return kept


def mask_of(values: Tensor, members: Mapping[Unit, list[int]], kept: set[Unit]) -> list[bool]:
    """Flat mask: True for every weight of a kept unit."""
    flat = [False] * values.numel()
    for unit in kept:
        for place in members[unit]:
            flat[place] = True
    return flat


def schedule_by_hand(step: int, *, initial: float, final: float, begin: int, end: int, power: float) -> float:
    """The formula of the TensorFlow toolkit, in one line."""
    progress = min(1.0, max(0.0, (step - begin) / (end - begin)))
    return (initial - final) * (1 - progress) ** power + final


def relative_distance(one: tuple[list[float], list[float]], other: tuple[list[float], list[float]]) -> float:
    """Srinivas & Babu 2015, section 3.4: of (weights, biases), with 0 / 0 taken as 0."""

    def ratio(a: list[float], b: list[float]) -> float:
        apart = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
        both = sum((x + y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
        return 0.0 if apart == 0 else apart / both

    return ratio(one[0], other[0]) + ratio(one[1], other[1])


def merges(filters: Tensor, biases: Tensor, outgoing: Tensor, *, homogeneous: bool) -> list[tuple[int, int, float]]:
    """Every pair weighed anew after every merger: (who leaves, who takes over, what it cost), in order; ties to the earlier pair."""
    units, sent = {}, {}
    for k, (w, b, a) in enumerate(zip(filters.tolist(), biases.tolist(), outgoing.tolist(), strict=True)):
        alpha = sum(x * x for x in w) ** 0.5 if homogeneous else 1.0
        units[k] = [x / alpha for x in w], [x / alpha for x in b]
        sent[k] = [alpha * x for x in a]
    found = []
    while len(units) > 1:
        costs = {
            (j, i): sum(x * x for x in sent[j]) / len(sent[j]) * relative_distance(units[j], units[i]) ** 2
            for j in units
            for i in units
            if i != j
        }
        j, i = min(costs, key=lambda pair: (costs[pair], pair))
        found.append((j, i, costs[j, i]))
        sent[i] = [x + y for x, y in zip(sent[i], sent[j], strict=True)]
        del units[j], sent[j]
    return found


Oracle = Callable[..., Any]


def greedy_surgery(weights, hessian):
    """Optimal brain surgery on one row with an inverse made anew for every step: the order of removals, and the rises of w^T H w."""
    w, left, order, rises = weights.double().clone(), list(range(len(weights))), [], []
    while left:
        inverse = torch.linalg.inv(hessian.double()[left][:, left])
        costs = w[left].square() / inverse.diagonal()
        at = int(costs.argmin())
        rises.append(float(costs[at]))
        w[left] -= w[left[at]] / inverse[at, at] * inverse[:, at]
        w[left[at]] = 0
        order.append(left.pop(at))
    return order, rises


def restricted_least_squares(weights, hessian, mask):
    """The row on ``mask`` whose outputs are nearest to those of ``weights``."""
    out = torch.zeros_like(weights)
    if mask.any():
        out[mask] = torch.linalg.solve(hessian[mask][:, mask], (hessian @ weights)[mask])
    return out
