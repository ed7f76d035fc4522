"""Allocations under a budget: never exceeded, full to the last unit, and as good as trying everything."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from secateur.allocations.knapsack import Knapsack
from secateur.allocations.per_cost import PerCost
from secateur.allocations.uniform import Uniform
from secateur.allocations.within import Within
from secateur.errors import OverBudget, UnknownName
from secateur.pricing import Dimension, Part, Pricing
from secateur.units import Table, Units


def chain(*widths):
    """Layers in a row: inputs and outputs of size 3, hidden widths that may shrink; the cost is the number of weights."""
    names = "abcdefgh"[: len(widths)]
    sizes, places = [3, *widths, 3], []
    parts, dims = [], []
    for k in range(len(sizes) - 1):
        places = []
        if k > 0:
            places.append((f"w{k}", 1))
            dims.append(Dimension((f"w{k}", 1), sizes[k], ((names[k - 1], 1),)))
        if k < len(widths):
            places.append((f"w{k}", 0))
            dims.append(Dimension((f"w{k}", 0), sizes[k + 1], ((names[k], 1),)))
        parts.append(Part(sizes[k] * sizes[k + 1], tuple(places)))
    return Pricing(parts=tuple(parts), dimensions=tuple(dims), units=tuple(zip(names, widths, strict=True)))


def random_units(pricing, seed):
    generator = torch.Generator().manual_seed(seed)
    return Units({name: Table.of(torch.rand(count, generator=generator)) for name, count in pricing.units})


def harms_of(pricing, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.linspace(0.1, 1.0, 10)
    rises = {name: torch.rand(10, generator=generator).cumsum(0) for name, _ in pricing.units}
    return tuple((name, tuple(zip(points.tolist(), rise.tolist(), strict=True))) for name, rise in rises.items())


def allocations(pricing, limit, seed, **more):
    yield PerCost(pricing=pricing, limit=limit, **more)
    yield Within(pricing=pricing, limit=limit, family=Uniform, **more)
    yield Knapsack(pricing=pricing, limit=limit, harms=harms_of(pricing, seed), **more)


@settings(max_examples=40)
@given(widths=st.lists(st.integers(1, 40), min_size=1, max_size=4), share=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_never_exceeded_and_one_more_unit_would(widths, share, seed):
    pricing = chain(*widths)
    units = random_units(pricing, seed)
    limit = share * pricing({})
    least = pricing(dict.fromkeys(units, 1))
    for allocation in allocations(pricing, limit, seed):
        if least > limit:
            with pytest.raises(OverBudget, match="smallest widths"):
                allocation(units)
            continue
        counts = allocation(units)
        assert pricing(counts) <= limit * (1 + 1e-9)
        for name, count in counts.items():
            assert count == units.count(name) or pricing({**counts, name: count + 1}) > limit


@settings(max_examples=20)
@given(share=st.floats(0.3, 0.95), seed=st.integers(0, 99))
def test_widths_in_steps(share, seed):
    pricing = chain(37, 64, 20)
    units = random_units(pricing, seed)
    steps = (("a", 8), ("b", 8), ("c", 4))
    for allocation in allocations(pricing, share * pricing({}), seed, steps=steps):
        counts = allocation(units)
        for (name, step), count in zip(steps, counts.values(), strict=True):
            assert count % step == 0 or count == units.count(name)
        assert pricing(counts) <= share * pricing({})


def test_per_cost_is_the_fractional_knapsack_for_one_price():
    """With one price for all, the ranking by score per cost is the ranking by score."""
    dims = Dimension(("x", 0), 10, (("a", 1),)), Dimension(("y", 0), 10, (("b", 1),))
    pricing = Pricing(
        parts=(Part(10, (("x", 0),)), Part(10, (("y", 0),))), dimensions=dims, units=(("a", 10), ("b", 10))
    )
    scores = {"a": torch.arange(10.0), "b": torch.arange(10.0) + 4.5}
    counts = PerCost(pricing=pricing, limit=8)(Units({n: Table.of(s) for n, s in scores.items()}))
    best = torch.cat([scores["a"], scores["b"]]).sort(descending=True).values[7]
    assert counts == {name: int((s >= best).sum()) for name, s in scores.items()} | {
        "a": max(1, int((scores["a"] >= best).sum()))
    }


def test_dear_units_go_first():
    dims = Dimension(("x", 0), 4, (("dear", 1),)), Dimension(("y", 0), 4, (("cheap", 1),))
    parts = Part(400, (("x", 0),)), Part(4, (("y", 0),))
    pricing = Pricing(parts=parts, dimensions=dims, units=(("dear", 4), ("cheap", 4)))
    units = Units({name: Table.of(torch.ones(4)) for name in ("dear", "cheap")})
    assert PerCost(pricing=pricing, limit=204)(units) == {"dear": 2, "cheap": 4}


@settings(max_examples=25)
@given(seed=st.integers(0, 999), share=st.floats(0.3, 0.9))
def test_the_table_against_trying_everything(seed, share):
    """Prices that do not interact: then dynamic programming is exact up to the size of its bins."""
    generator = torch.Generator().manual_seed(seed)
    widths, prices = (5, 7, 4), (torch.rand(3, generator=generator) + 0.1).tolist()
    names = "abc"
    dims = tuple(Dimension((n, 0), w, ((n, 1),)) for n, w in zip(names, widths, strict=True))
    parts = tuple(Part(p * w, ((n, 0),)) for n, w, p in zip(names, widths, prices, strict=True))
    pricing = Pricing(parts=parts, dimensions=dims, units=tuple(zip(names, widths, strict=True)))
    harms = []
    for name, width in zip(names, widths, strict=True):
        rise = torch.rand(width, generator=generator).cumsum(0).tolist()
        harms.append((name, tuple((k / width, rise[k - 1]) for k in range(1, width + 1))))
    limit = share * pricing({})
    units = random_units(pricing, seed)

    def harm_of(counts):
        return sum(
            dict(points)[(w - counts[n]) / w] if counts[n] < w else 0.0
            for (n, points), w in zip(harms, widths, strict=True)
        )

    everything = [dict(zip(names, c, strict=True)) for c in itertools.product(*(range(1, w + 1) for w in widths))]
    assume(pricing(dict.fromkeys(names, 1)) <= limit)
    best = min(harm_of(counts) for counts in everything if pricing(counts) <= limit)
    near = min(harm_of(counts) for counts in everything if pricing(counts) <= limit * 0.995)
    found = harm_of(Knapsack(pricing=pricing, limit=limit, harms=tuple(harms))(units))
    assert best - 1e-9 <= found <= near + 1e-9


def test_a_group_without_a_curve():
    pricing = chain(4, 4)
    allocation = Knapsack(pricing=pricing, limit=20, harms=(("a", ((0.5, 1.0),)),))
    with pytest.raises(UnknownName, match="no sensitivity curve for 'b'"):
        allocation(random_units(pricing, 0))
