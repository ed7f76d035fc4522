"""Strings become objects at the door; what is not there is named with a near miss."""

import sys
from types import ModuleType

import pytest

from secateur.allocations.uniform import Uniform
from secateur.criteria.magnitude import Magnitude
from secateur.errors import UnknownName
from secateur.granularities.unstructured import Unstructured
from secateur.names import allocation_of, build, dotted, find, granularity_of, names_in
from secateur.notes import describe


def test_the_folder_is_the_registry():
    assert {"magnitude", "random", "taylor", "snip", "movement"} <= set(names_in("criteria"))
    assert {"global", "uniform", "erk", "lamp", "per_layer"} <= set(names_in("allocations"))
    assert find("criteria", "magnitude") is Magnitude
    assert allocation_of("layer", 0.5) == Uniform(sparsity=0.5)


def test_ones_own_things_by_dotted_path(monkeypatch):
    lab = ModuleType("some_lab")
    lab.Idea, lab.pattern = Magnitude, Unstructured(per_row=True)
    monkeypatch.setitem(sys.modules, "some_lab", lab)
    assert find("criteria", "some_lab:Idea") is Magnitude
    assert granularity_of("some_lab:pattern") == Unstructured(per_row=True)


@pytest.mark.parametrize(
    "path", ["nowhere_at_all:Thing", ":Thing", "..up:Thing", "secateur.errors:Nope", "secateur.errors:"]
)
def test_paths_that_lead_nowhere_are_named(path):
    with pytest.raises(UnknownName, match=r"cannot import|has no"):
        dotted(path)


def test_near_misses_are_suggested():
    with pytest.raises(UnknownName, match="did you mean 'magnitude'"):
        find("criteria", "magntiude")
    with pytest.raises(UnknownName, match="has no option 'pp'; it has: p"):
        build(Magnitude, {"pp": 2}, "method 'magnitude'")


def test_parts_in_a_few_words():
    assert describe(Magnitude()) == "Magnitude"
    assert describe(Magnitude(p=2)) == "Magnitude(p=2)"
    assert describe(granularity_of("2:4")) == "2:4"
    assert describe(None) == "no allocation"
