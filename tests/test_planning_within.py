"""Masks that only shrink stay exact in number, whatever removed weights score by now."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.names import allocation_of, granularity_of
from secateur.planning import plan
from secateur.scores import Scores


@given(
    st.integers(0, 999),
    st.sampled_from(["unstructured", "row", "filter", "kernel", "block:2x2"]),
    st.sampled_from(["global", "layer", "erk", "lamp"]),
)
def test_what_is_removed_stays_removed_and_counts_stay_exact(seed, granularity, scope):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (8, 4, 3), "b": (6, 8)}
    draw = lambda: Scores({n: torch.randn(s, generator=generator) for n, s in shapes.items()}, each=torch.abs)  # noqa: E731
    pattern = granularity_of(granularity)
    half = plan(draw(), pattern, allocation_of("layer", 0.5))
    fresh = draw()  # other scores: weights removed above may rank first now
    later = plan(fresh, pattern, allocation_of(scope, 0.75), within=half)
    units = pattern.pool(fresh)
    assert later == (later & half)
    wanted = allocation_of("global", 0.75)(units)
    left = {n: int((t > 0).sum()) for n, t in pattern.pool(Scores(later, each=torch.Tensor.float)).items()}
    alive = {n: int((t > 0).sum()) for n, t in pattern.pool(Scores(half, each=torch.Tensor.float)).items()}
    if all(left[n] < alive[n] for n in left):  # ERK may ask a layer for more than is left of it
        assert sum(left.values()) == sum(wanted.values()) or scope == "layer"


def test_by_hand():
    scores = Scores({"w": torch.tensor([5.0, 1.0, -9.0, 2.0])})  # the first weight was removed and would come back
    half = plan(
        Scores({"w": torch.tensor([0.0, 1.0, 2.0, 3.0])}), granularity_of("unstructured"), allocation_of("layer", 0.25)
    )
    later = plan(scores, granularity_of("unstructured"), allocation_of("layer", 0.5), within=half)
    assert later["w"].tolist() == [False, True, False, True]


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_n_of_m_within(pattern):
    n = int(pattern[0])
    half = plan(Scores({"w": torch.randn(4, 8)}), granularity_of("2:4"), None)
    later = plan(Scores({"w": torch.randn(4, 8)}), granularity_of(pattern), None, within=half)
    assert (later["w"].view(4, 2, 4).sum(-1) == n).all()
    assert later == (later & half)


def test_an_allocation_that_asks_for_more_than_is_left_brings_nothing_back():
    """ERK wants the small layer dense, of which half is gone."""
    scores = Scores({"small": torch.rand(3, 3), "large": torch.rand(60, 60)})
    half = plan(scores, granularity_of("unstructured"), allocation_of("layer", 0.5))
    later = plan(scores, granularity_of("unstructured"), allocation_of("erk", 0.75), within=half)
    assert later == (later & half)


@pytest.mark.parametrize("scope", ["global", "layer", "erk", "lamp"])
def test_whole_number_scores_within(scope):
    scores = Scores({"w": torch.arange(16).view(4, 4)})
    half = plan(scores, granularity_of("unstructured"), allocation_of("layer", 0.5))
    later = plan(scores, granularity_of("unstructured"), allocation_of(scope, 0.75), within=half)
    assert later["w"].nonzero().tolist() == [[3, column] for column in range(4)]
