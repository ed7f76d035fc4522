"""Prices: parameters are predicted exactly at any widths; savings are slopes."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coupling.tricks import draw_masks, inputs, make

import secateur as sc
from secateur.costs.params import Params
from secateur.coupling.channels import Channels
from secateur.narrowing.meeting import pricing_of
from secateur.narrowing.narrow import cut_copy
from secateur.pricing import Dimension, Part, Pricing

NAMES = [
    "residual",
    "dense_concat",
    "flatten",
    "depthwise_squeeze_excite",
    "grouped",
    "attention_fused",
    "lstm",
    "tied",
    "transposed",
]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(fraction=st.floats(0.1, 0.9), seed=st.integers(0, 1000))
def test_parameters_are_exact(name, fraction, seed):
    model, example = make(name), inputs(name)
    coupling = sc.couple(model, example)
    masks = draw_masks(model, coupling.groups(), fraction, seed)
    structure = coupling.structure_for(masks)
    pricing = pricing_of(Params(), coupling, model, example)
    thin = cut_copy(model, coupling, structure) if structure.kept else copy.deepcopy(model)
    counts = kept_units(coupling, masks)
    assert pricing(counts) == pytest.approx(Params().measure([thin], example)[0])
    assert pricing({}) == Params().measure([model], example)[0]


def kept_units(coupling, masks):
    whole, counts = Channels(groups=coupling.groups()), {}
    for group in coupling.groups():
        (name, dim), index = next((p, i) for p, i in group.places.items() if p[0] in masks)
        alive = masks[name].movedim(dim, 0).reshape(masks[name].shape[dim], -1).any(1)
        counts[whole.key(group)] = int(alive[index].any(1).sum())
    return counts


def two_layers():
    """8 channels between 3 inputs and 5 outputs: 24 + 8 + 40 + 5 parameters."""
    dims = tuple(Dimension(place, 8, (("a", 1),)) for place in (("x.weight", 0), ("x.bias", 0), ("y.weight", 1)))
    parts = (Part(24, (("x.weight", 0),)), Part(8, (("x.bias", 0),)), Part(40, (("y.weight", 1),)), Part(5))
    return Pricing(parts=parts, dimensions=dims, units=(("a", 8),))


def test_by_hand():
    pricing = two_layers()
    assert pricing({"a": 8}) == 77
    assert pricing({"a": 2}) == 5 + 2 * 9
    assert pricing.savings({"a": 3}) == pytest.approx({"a": 9})


def test_a_weight_between_two_groups_costs_less_when_one_is_narrow():
    place = ("w", 0), ("w", 1)
    dims = Dimension(place[0], 10, (("a", 1),)), Dimension(place[1], 4, (("b", 2),))
    pricing = Pricing(parts=(Part(40, place),), dimensions=dims, units=(("a", 10), ("b", 2)))
    assert pricing.savings({"a": 10, "b": 2}) == pytest.approx({"a": 4, "b": 20})
    assert pricing.savings({"a": 10, "b": 1}) == pytest.approx({"a": 2, "b": 20})


def test_it_is_a_value():
    assert two_layers() == two_layers()
    assert hash(two_layers()) == hash(two_layers())
