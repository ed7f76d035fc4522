"""Masks: a mapping that cannot be mistaken, applied exactly."""

import copy
import pickle

import pytest
import torch
from torch import nn

import secateur as sc
import zoo
from secateur.errors import WrongModel


def masks_of(**rows):
    return sc.Masks({name: torch.tensor(row, dtype=torch.bool) for name, row in rows.items()})


def test_numbers_by_hand():
    masks = masks_of(a=[1, 0, 0, 1], b=[1, 1])
    assert (masks.kept, masks.total, masks.sparsity) == (4, 6, pytest.approx(1 / 3))
    assert masks.sparsities() == {"a": 0.5, "b": 0.0}
    assert sc.Masks().sparsity == 0.0


def test_both_keep():
    both = masks_of(a=[1, 1, 0], b=[1]) & masks_of(a=[0, 1, 1], c=[0])
    assert {name: mask.tolist() for name, mask in both.items()} == {
        "a": [False, True, False],
        "b": [True],
        "c": [False],
    }


def test_equal_copies_and_pickles():
    masks = masks_of(a=[1, 0])
    assert masks == copy.deepcopy(masks) == pickle.loads(pickle.dumps(masks))
    assert masks != masks_of(a=[1, 1])
    assert masks != masks_of(b=[1, 0])
    assert masks != "masks"
    with pytest.raises(TypeError):
        hash(masks)


def test_only_bool_tensors_are_masks():
    with pytest.raises(WrongModel, match=r"dtype torch\.float32; masks are torch\.bool"):
        sc.Masks({"a": torch.ones(2)})


def test_apply_is_exact_zero_even_for_nan_and_infinity_and_keeps_the_rest():
    layer = nn.Linear(3, 1)
    layer.weight.data = torch.tensor([[torch.nan, -torch.inf, -3.0]])
    parameter = layer.weight
    masks_of(weight=[[0, 0, 1]]).apply_(layer)
    assert layer.weight.tolist() == [[0.0, 0.0, -3.0]]
    assert layer.weight is parameter
    assert parameter.requires_grad


def test_a_tied_weight_may_go_by_either_name():
    model, _ = zoo.make("tied")
    mask = torch.zeros(12, 8, dtype=torch.bool)
    sc.Masks({"head.weight": mask}).apply_(model)
    assert not model.embedding.weight.any()


def test_other_models_are_refused_before_anything_changes():
    model, _ = zoo.make("linear")
    before = copy.deepcopy(model.state_dict())
    zero = {"0.weight": torch.zeros(16, 8, dtype=torch.bool)}
    for wrong in (zero | {"nope": torch.ones(1) > 0}, zero | {"2.weight": torch.ones(3, 3) > 0}):
        with pytest.raises(WrongModel):
            sc.Masks(wrong).apply_(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_masks_read_off_zeros():
    model, _ = zoo.make("linear")
    masks = sc.prune(model, sparsity=0.5).masks
    assert sc.Masks.of_zeros(masks.apply_(model), masks) == masks
