"""`Structure`: to a header and back without loss; whatever else a header holds is refused."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BadFile
from secateur.structure import Structure


@st.composite
def structures(draw):
    names = draw(st.lists(st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,4})?", fullmatch=True), unique=True, max_size=4))
    shapes, kept = {}, {}
    for name in names:
        shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
        shapes[name] = tuple(shape)
        kept[name] = {}
        for dim in draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)):
            indices = draw(st.sets(st.integers(0, shape[dim] - 1), min_size=1))
            kept[name][dim] = tuple(sorted(indices))
    sizes = draw(
        st.dictionaries(
            st.tuples(st.sampled_from(["", "a.b"]), st.sampled_from(["width", "parts.1"])), st.integers(1, 99)
        )
    )
    return Structure(shapes=shapes, kept=kept, sizes=sizes)


@given(structures())
def test_through_json_and_back(structure):
    assert Structure.from_dict(json.loads(json.dumps(structure.to_dict()))) == structure


@given(structures())
def test_the_mask_is_what_stays(structure):
    for name, dims in structure.kept.items():
        mask = structure.mask(name)
        assert mask.shape == structure.shapes[name]
        for dim, indices in dims.items():
            other = mask.movedim(dim, 0).reshape(mask.shape[dim], -1).any(1)
            assert tuple(other.nonzero().squeeze(1).tolist()) == indices


def test_a_number_to_check_by_hand():
    """Ten rows, of which 0, 3 and 9 stay: bits 0 and 3 of the first byte, bit 1 of the second."""
    structure = Structure(shapes={"w": (10, 2)}, kept={"w": {0: (0, 3, 9)}}, sizes={("a", "width"): 3})
    data = structure.to_dict()
    assert {key: data[key] for key in ("shapes", "kept", "sizes")} == {
        "shapes": {"w": [10, 2]}, "kept": {"w": {"0": "0902"}}, "sizes": [["a", "width", 3]],
    }  # fmt: skip
    assert int(structure.mask("w").sum()) == 6
    assert torch.equal(structure.mask("w")[:, 0].nonzero().squeeze(1), torch.tensor([0, 3, 9]))


def test_narrowed_twice_by_hand():
    """Rows 0, 3, 4 and 9 of ten stay, then the second and fourth of these: 3 and 9; what one of the two left alone is the other's."""
    first = Structure(
        shapes={"w": (10, 2), "a": (4,)}, kept={"w": {0: (0, 3, 4, 9)}, "a": {0: (1,)}}, sizes={("", "n"): 4}
    )
    second = Structure(
        shapes={"w": (4, 2), "b": (3,)}, kept={"w": {0: (1, 3), 1: (1,)}, "b": {0: (0, 2)}}, sizes={("", "n"): 2}
    )
    both = first.then(second)
    assert both.shapes == {"w": (10, 2), "a": (4,), "b": (3,)}
    assert both.kept == {"w": {0: (3, 9), 1: (1,)}, "a": {0: (1,)}, "b": {0: (0, 2)}}
    assert both.sizes == {("", "n"): 2}


GOOD = {"shapes": {"w": [10, 2]}, "kept": {"w": {"0": "0902"}}, "sizes": [["a", "width", 3]]}


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": {}},
        {"shapes": {"w": [-10, 2]}},
        {"shapes": {"w": ["10", 2]}},
        {"shapes": [1]},
        {"kept": {"w": {"0": "09"}}},
        {"kept": {"w": {"0": "0904"}}},
        {"kept": {"w": {"0": "0000"}}},
        {"kept": {"w": {"0": "zz02"}}},
        {"kept": {"w": {"2": "0902"}}},
        {"kept": {"w": {"x": "0902"}}},
        {"kept": 7},
        {"sizes": [["a", "width"]]},
        {"sizes": [["a", "width", -3]]},
        {"sizes": [["a", "width", "3"]]},
        {"sizes": None},
    ],
    ids=str,
)
def test_anything_else_is_a_bad_file(change):
    assert Structure.from_dict(GOOD).kept == {"w": {0: (0, 3, 9)}}
    with pytest.raises(BadFile):
        Structure.from_dict(GOOD | change)


@pytest.mark.parametrize("data", [None, [], 3, "x", {}, {"shapes": {}}])
def test_no_structure_at_all(data):
    with pytest.raises(BadFile):
        Structure.from_dict(data)
