"""`cut_`: attributes follow tensors in every layer of PyTorch, and everything can be put back."""

import copy

import pytest
import torch
from torch import nn

from secateur.cutting import cut_, follow_
from secateur.errors import WrongModel
from secateur.structure import Structure


def structure(model, sizes=None, **kept):
    """``kept`` as ``weight={0: (0, 1)}``; names may hold dots through ``__``."""
    named = {name.replace("__", "."): dims for name, dims in kept.items()}
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    return Structure(shapes={n: tuple(tensors[n].shape) for n in named}, kept=named, sizes=sizes or {})


LAYERS = [
    (nn.Linear(4, 6), {"weight": {0: (1, 2), 1: (0,)}, "bias": {0: (1, 2)}}, {"out_features": 2, "in_features": 1}),
    (nn.Bilinear(3, 4, 5), {"weight": {0: (0,), 1: (0, 1), 2: (1, 2, 3)}, "bias": {0: (0,)}},
     {"out_features": 1, "in1_features": 2, "in2_features": 3}),
    (nn.Conv2d(4, 6, 3), {"weight": {0: (0, 1), 1: (0, 1, 2)}, "bias": {0: (0, 1)}},
     {"out_channels": 2, "in_channels": 3, "groups": 1}),
    (nn.Conv1d(6, 6, 3, groups=6), {"weight": {0: (0, 5)}, "bias": {0: (0, 5)}},
     {"out_channels": 2, "in_channels": 2, "groups": 2}),
    (nn.Conv2d(8, 12, 3, groups=4), {"weight": {0: (0, 1, 2, 9, 10, 11)}, "bias": {0: (0, 1, 2, 9, 10, 11)}},
     {"out_channels": 6, "in_channels": 4, "groups": 2}),
    (nn.Conv2d(8, 12, 3, groups=2), {"weight": {0: (0, 1, 6, 7), 1: (0,)}, "bias": {0: (0, 1, 6, 7)}},
     {"out_channels": 4, "in_channels": 2, "groups": 2}),
    (nn.ConvTranspose2d(4, 6, 3), {"weight": {0: (0, 1, 2), 1: (0, 5)}, "bias": {0: (0, 5)}},
     {"in_channels": 3, "out_channels": 2, "groups": 1}),
    (nn.ConvTranspose1d(8, 4, 3, groups=2), {"weight": {0: (4, 5, 6, 7)}, "bias": {0: (2, 3)}},
     {"in_channels": 4, "out_channels": 2, "groups": 1}),
    (nn.BatchNorm2d(6), {n: {0: (0, 3)} for n in ("weight", "bias", "running_mean", "running_var")},
     {"num_features": 2}),
    (nn.InstanceNorm1d(6, affine=True), {"weight": {0: (0,)}, "bias": {0: (0,)}}, {"num_features": 1}),
    (nn.GroupNorm(3, 6), {"weight": {0: (2, 3)}, "bias": {0: (2, 3)}}, {"num_groups": 1, "num_channels": 2}),
    (nn.LayerNorm(6), {"weight": {0: (0, 3)}, "bias": {0: (0, 3)}}, {"normalized_shape": (2,)}),
    (nn.RMSNorm(6), {"weight": {0: (0, 3)}}, {"normalized_shape": (2,)}),
    (nn.Embedding(9, 6), {"weight": {1: (0, 3)}}, {"num_embeddings": 9, "embedding_dim": 2}),
    (nn.EmbeddingBag(9, 6), {"weight": {1: (0, 3)}}, {"num_embeddings": 9, "embedding_dim": 2}),
    (nn.PReLU(6), {"weight": {0: (0, 3)}}, {"num_parameters": 2}),
    (nn.GRUCell(4, 2), {"weight_ih": {0: (0, 2, 4)}, "weight_hh": {0: (0, 2, 4), 1: (0,)},
     "bias_ih": {0: (0, 2, 4)}, "bias_hh": {0: (0, 2, 4)}}, {"input_size": 4, "hidden_size": 1}),
    (nn.RNN(4, 3), {"weight_ih_l0": {0: (0, 2), 1: (0,)}, "weight_hh_l0": {0: (0, 2), 1: (0, 2)},
     "bias_ih_l0": {0: (0, 2)}, "bias_hh_l0": {0: (0, 2)}}, {"input_size": 1, "hidden_size": 2}),
    (nn.LSTM(4, 3, proj_size=2), {"weight_hh_l0": {1: (0,)}, "weight_hr_l0": {0: (0,)}},
     {"input_size": 4, "hidden_size": 3, "proj_size": 1}),
]  # fmt: skip


def plain(module):
    return {k: v for k, v in vars(module).items() if isinstance(v, int | tuple | list | str) and k[0] != "_"}


@pytest.mark.parametrize(("layer", "kept", "sizes"), LAYERS, ids=[type(m).__name__ for m, _, _ in LAYERS])
def test_attributes_follow_and_come_back(layer, kept, sizes):
    layer, before = copy.deepcopy(layer), copy.deepcopy(layer)
    identities = {n: id(p) for n, p in layer.named_parameters()}
    undo = cut_(layer, structure(layer, **kept))
    assert {name: getattr(layer, name) for name in sizes} == sizes
    tensors = dict([*layer.named_parameters(), *layer.named_buffers()])
    for name, dims in kept.items():
        expected = before.get_parameter(name) if name in identities else before.get_buffer(name)
        for dim, indices in dims.items():
            expected = expected.index_select(dim, torch.tensor(indices))
        assert torch.equal(tensors[name], expected)
    assert {n: id(p) for n, p in layer.named_parameters()} == identities
    undo()
    assert plain(layer) == plain(before)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), before.parameters(), strict=True))
    assert {n: id(p) for n, p in layer.named_parameters()} == identities


def test_unknown_layers_are_left_alone():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.width = 3

    module = Own()
    follow_(module)
    assert module.width == 3


def test_sizes_of_the_user_s_own_follow_also_inside_lists():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.parts, self.pair = 6, [4, 2], (1, 6)
            self.layer = nn.Linear(2, 6)

    model = Own()
    sizes = {("", "width"): 5, ("", "parts.0"): 3, ("", "pair.1"): 5}
    undo = cut_(model, structure(model, sizes, layer__weight={0: (0, 1, 2, 4, 5)}, layer__bias={0: (0, 1, 2, 4, 5)}))
    assert (model.width, model.parts, model.pair) == (5, [3, 2], (1, 5))
    undo()
    assert (model.width, model.parts, model.pair) == (6, [4, 2], (1, 6))


def test_tied_weights_stay_tied():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    undo = cut_(model, structure(model, embedding__weight={1: (0, 2)}))
    assert model["head"].weight is model["embedding"].weight
    assert (model["head"].in_features, model["embedding"].embedding_dim) == (2, 2)
    undo()
    assert model["head"].weight.shape == (5, 4)


def test_a_buffer_in_two_modules_is_cut_in_both():
    model = nn.ModuleDict({"a": nn.BatchNorm1d(4), "b": nn.BatchNorm1d(4)})
    model["b"].running_mean = model["a"].running_mean
    undo = cut_(model, structure(model, a__running_mean={0: (0, 1)}))
    assert model["b"].running_mean is model["a"].running_mean
    assert model["b"].running_mean.shape == (2,)
    undo()
    assert model["b"].running_mean is model["a"].running_mean
    assert model["b"].running_mean.shape == (4,)


@pytest.mark.parametrize(
    ("shapes", "kept", "sizes", "message"),
    [
        ({"weigth": (3, 2)}, {"weigth": {0: (0,)}}, {}, r"'weigth' with shape \[3, 2\]; here it is missing"),
        ({"weight": (4, 2)}, {"weight": {0: (0,)}}, {}, r"'weight' with shape \[4, 2\]; here it is \[3, 2\]"),
        ({}, {}, {("", "width"): 2}, r"sets 'width' of '' to 2; here it is None"),
        ({}, {}, {("", "out_features"): 9}, r"sets 'out_features' of '' to 9; here it is 3"),
        ({}, {}, {("inner", "out_features"): 1}, r"of 'inner' to 1; here it is None"),
        ({}, {}, {("", "__class__"): 1}, r"here it is None"),
    ],
)
def test_a_structure_of_another_network_is_refused_before_anything_is_cut(shapes, kept, sizes, message):
    layer = nn.Linear(2, 3)
    with pytest.raises(WrongModel, match=message):
        cut_(layer, Structure(shapes=shapes, kept=kept, sizes=sizes))
    assert layer.weight.shape == (3, 2)
