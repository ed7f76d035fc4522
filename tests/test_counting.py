"""Fractions become exact counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles import water_level
from secateur.counting import check_sparsity, kept_of, lookup_per_layer, share_out
from secateur.errors import BadSparsity, UnknownName


@pytest.mark.parametrize("bad", [-0.1, 1, 1.0, 90, float("nan"), float("inf"), True, "0.5", None])
def test_only_fractions_removed_are_sparsities(bad):
    with pytest.raises(BadSparsity, match=r"is not a fraction in \[0, 1\)"):
        check_sparsity(bad)


def test_percent_is_recognised():
    with pytest.raises(BadSparsity, match=r"for 90 % write 0\.9"):
        check_sparsity(90)


@pytest.mark.parametrize(
    ("sparsity", "total", "min_kept", "kept"),
    [(0, 10, 0, 10), (0.9, 10, 0, 1), (0.75, 2, 0, 0), (0.75, 2, 1, 1), (0.5, 3, 9, 3), (0.5, 0, 2, 0)],
)
def test_kept_of_by_hand(sparsity, total, min_kept, kept):
    assert kept_of(sparsity, total, min_kept) == kept


def test_floors_and_caps_at_once_by_hand():
    """ "a" is capped at 6 first; then the floors of the others take 2 of them back."""
    assert share_out({"a": 100, "b": 1, "c": 1}, 10, limits={"a": 6, "b": 99, "c": 99}, min_kept=3) == {
        "a": 4,
        "b": 3,
        "c": 3,
    }


@given(
    layers=st.lists(st.tuples(st.integers(0, 50), st.fractions(1, 100)), min_size=1, max_size=6),
    fraction=st.floats(0, 1),
    min_kept=st.integers(0, 8),
)
def test_shares_are_a_water_level_and_add_up(layers, fraction, min_kept):
    limits = {str(n): limit for n, (limit, _) in enumerate(layers)}
    shares = {str(n): share * bool(limits[str(n)]) for n, (_, share) in enumerate(layers)}
    floors = {name: min(min_kept, limit) for name, limit in limits.items()}
    keep = max(round(fraction * sum(limits.values())), sum(floors.values()))
    counts = share_out({n: float(s) for n, s in shares.items()}, keep, limits=limits, min_kept=min_kept)
    assert sum(counts.values()) == keep
    for name, amount in water_level(shares, keep, limits, floors).items():
        assert floors[name] <= counts[name] <= limits[name]
        assert abs(counts[name] - amount) < 1 + 1e-6


def test_floors_that_ask_for_too_much_are_refused():
    with pytest.raises(BadSparsity, match="2 units may stay, but the minimum kept per layer asks for 3"):
        share_out({"a": 1, "b": 1, "c": 1}, 2, limits={"a": 1, "b": 1, "c": 1}, min_kept=1)


def test_layers_are_found_by_name_path_and_glob_and_the_first_wins():
    names = ["enc.0.weight", "enc.1.weight", "head.weight"]
    found = lookup_per_layer({"enc.1": 0.1, "enc.*": 0.5, "head.weight": 0.9}, names, "overrides")
    assert found == {"enc.1.weight": 0.1, "enc.0.weight": 0.5, "head.weight": 0.9}
    with pytest.raises(UnknownName, match="'nope'"):
        lookup_per_layer({"nope": 0.1}, names, "overrides")


def test_a_floor_that_a_cap_relieves_is_not_fixed_too_early():
    """ "a" wants 9.0 and may have 2; what it leaves lifts "b" from 0.9 to 7 of its own."""
    limits = {"a": 2, "b": 99, "c": 99}
    assert share_out({"a": 100, "b": 10, "c": 1}, 10, limits=limits, min_kept=1) == {"a": 2, "b": 7, "c": 1}


def test_an_override_reaches_everything_inside_the_module_it_names():
    names = ["fc1._layer.weight", "fc2._layer.weight", "fc10.weight"]
    assert lookup_per_layer({"fc1": 0.5}, names, "overrides") == {"fc1._layer.weight": 0.5}
