"""Genomes stay within budgets and widths; operators do what they say."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import OverBudget, UnknownName
from secateur.evolution.genomes import Genomes, hexed, unhexed
from secateur.evolution.operators import crossed, mutated, roulette
from secateur.pricing import Dimension, Part, Pricing

PLACES = ("a", 0), ("b", 0)
PRICING = Pricing(
    parts=(Part(100.0, (PLACES[0],)), Part(60.0, PLACES), Part(10.0)),
    dimensions=(Dimension(PLACES[0], 16, (("a", 1),)), Dimension(PLACES[1], 12, (("b", 1),))),
    units=(("a", 16), ("b", 12)),
)


def genomes(limit=80.0, **more):
    return Genomes(units=PRICING.units, limits=((PRICING, limit),), **more)


@given(
    bits=st.lists(st.booleans(), min_size=28, max_size=28),
    seed=st.integers(0, 1000),
    limit=st.floats(40, 170),
    step=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=60, deadline=None)
def test_fitted_genomes_meet_the_limit_and_could_not_take_more(bits, seed, limit, step):
    space = genomes(limit, round_to=step)
    found = space.fitted(np.array(bits), np.random.default_rng(seed))
    counts = space.counts(found)
    assert PRICING(counts) <= limit * (1 + 1e-9)
    assert all(count >= step and count % step == 0 for count in counts.values())
    for name, units in space.units:
        if counts[name] + step <= units:
            assert PRICING(counts | {name: counts[name] + step}) > limit
    assert np.array_equal(found, space.fitted(np.array(bits), np.random.default_rng(seed)))


def test_what_fits_already_only_grows():
    space, few = genomes(), np.zeros(28, bool)
    few[[0, 20]] = True
    assert (space.fitted(few, np.random.default_rng(0)) & few).sum() == 2
    assert genomes(limit=1000).fitted(few, np.random.default_rng(0)).all()


def test_without_limits_only_the_minimum_is_kept():
    space = Genomes(units=PRICING.units, min_kept=3)
    assert space.counts(space.fitted(np.zeros(28, bool), np.random.default_rng(0))) == {"a": 3, "b": 3}
    chosen = np.arange(28) % 3 == 0
    assert np.array_equal(space.fitted(chosen, np.random.default_rng(0)), chosen)


def test_a_budget_that_is_too_small_is_refused():
    with pytest.raises(OverBudget, match="smallest widths"):
        genomes(limit=12.0).random(np.random.default_rng(0))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_words_come_back(bits):
    assert unhexed(hexed(np.array(bits)), len(bits)).tolist() == bits


def test_roulette_follows_fitness():
    """Objectives 1, 2 and 4 have fitness 1, 1/2 and 1/4: parts 4/7, 2/7 and 1/7; squared, 16/21, 4/21 and 1/21."""
    chance = np.random.default_rng(0)
    for pressure, parts in ((1.0, (4 / 7, 2 / 7, 1 / 7)), (2.0, (16 / 21, 4 / 21, 1 / 21))):
        drawn = Counter(roulette([1.0, 2.0, 4.0, float("inf")], chance, pressure=pressure) for _ in range(3000))
        assert drawn[3] == 0
        for place, part in enumerate(parts):
            assert drawn[place] / 3000 == pytest.approx(part, abs=0.03)
    assert roulette([float("inf")] * 3, chance) in (0, 1, 2)
    assert roulette([0.0, 1.0], chance, pressure=1.0) == 0  # an objective of zero is infinitely fit


@given(seed=st.integers(0, 500), size=st.integers(2, 40))
def test_crossing_swaps_one_stretch(seed, size):
    chance = np.random.default_rng(seed)
    one, other = np.zeros(size, bool), np.ones(size, bool)
    first, second = crossed(one, other, chance)
    assert np.array_equal(first, ~second)
    assert first.sum() > 0
    assert np.abs(np.diff(np.concatenate([[False], first, [False]]).astype(int))).sum() == 2  # one stretch
    assert not one.any()
    assert other.all()


@given(seed=st.integers(0, 500), extent=st.floats(0, 1))
def test_mutation_flips_a_stretch_or_bits(seed, extent):
    bits = np.random.default_rng(seed).random(50) < 0.5
    flipped = np.flatnonzero(mutated(bits, np.random.default_rng(seed), form="segment", extent=extent) ^ bits)
    assert 1 <= len(flipped) <= max(1, round(extent * 50))
    assert len(flipped) == flipped[-1] - flipped[0] + 1
    assert (mutated(bits, np.random.default_rng(seed), form="bit", extent=extent) ^ bits).any()
    with pytest.raises(UnknownName, match="segment"):
        mutated(bits, np.random.default_rng(0), form="swap")
