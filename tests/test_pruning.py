"""The one call: exact counts, untouched models, refusals."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

import secateur as sc
import zoo
from secateur.criteria.magnitude import Magnitude
from secateur.errors import UnknownName
from secateur.names import granularity_of

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")


def mlp(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in [(784, 40), (40, 20), (20, 10)]))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999])
def test_the_anchor_keeps_exactly_its_count(sparsity, ties):
    """32,360 weights: 784 * 40 + 40 * 20 + 20 * 10."""
    model = mlp()
    if ties:
        for p in model.parameters():
            p.data.mul_(50).round_()
    for scope in ("global", "erk", "lamp"):
        assert sc.prune(model, sparsity=sparsity, scope=scope).masks.kept == round((1 - sparsity) * 32_360)
    per_layer = sc.prune(model, sparsity=sparsity, scope="layer").masks
    assert [int(m.sum()) for m in per_layer.values()] == [round((1 - sparsity) * n) for n in (31_360, 800, 200)]


@pytest.mark.parametrize("name", [n for n in zoo.ZOO if n != "parametrised"])
@pytest.mark.parametrize("granularity", ["unstructured", "row", "filter"])
def test_the_model_is_not_touched_and_the_masks_are_its_zeros(name, granularity):
    model, x = zoo.make(name)
    before = copy.deepcopy(model.state_dict())
    pruned = sc.prune(model, sparsity=0.5, granularity=granularity, scope="layer")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert list(pruned.model.state_dict()) == list(before)
    parameters = dict(pruned.model.named_parameters())
    for key, mask in pruned.masks.items():
        assert torch.equal(parameters[key].detach(), before[key] * mask)
    pruned.model(x)


@settings(max_examples=25)
@given(
    scale=st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**15]),
    sparsity=st.floats(0, 0.99),
    scope=st.sampled_from(["global", "layer", "erk", "lamp"]),
    granularity=st.sampled_from(["unstructured", "filter", "block:4x1", "row"]),
    p=st.sampled_from([1, 2]),
)
def test_scaling_all_weights_changes_nothing(scale, sparsity, scope, granularity, p):
    model, _ = zoo.make("linear")
    bigger = copy.deepcopy(model)
    for parameter in bigger.parameters():
        parameter.data.mul_(scale)
    found = [sc.prune(m, sparsity=sparsity, scope=scope, granularity=granularity, p=p).masks for m in (model, bigger)]
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["unstructured", "filter", "kernel"])
@pytest.mark.parametrize("size", [1e-5, 1.0, 2e4])
def test_half_precision_ranks_as_float32_does(dtype, granularity, size):
    """Squares of 1e-5 underflow in float16 and sums of 2e4 overflow; neither may make ties."""
    model = nn.Conv2d(16, 16, 3, bias=False).to(dtype)
    torch.nn.init.uniform_(model.weight, -size, size)
    for p in (1, 2):
        found = [
            sc.prune(m, sparsity=0.5, granularity=granularity, p=p).masks for m in (model, copy.deepcopy(model).float())
        ]
        assert found[0] == found[1]


def test_overrides_and_floors():
    model, _ = zoo.make("linear")  # 128 and 64 weights
    masks = sc.prune(model, sparsity=0.9, overrides={"0": 0.25}).masks
    assert [int(m.sum()) for m in masks.values()] == [96, 6]
    masks = sc.prune(model, sparsity=0.9, overrides={"0": 0.999}, min_kept=5).masks
    assert [int(m.sum()) for m in masks.values()] == [5, 6]
    for scope in ("global", "layer", "erk", "lamp"):
        assert min(int(m.sum()) for m in sc.prune(model, sparsity=0.9, scope=scope, min_kept=9).masks.values()) >= 9


@pytest.mark.parametrize("name", ["conv2d", "grouped", "transposed", "transposed_grouped", "linear", "conv3d"])
def test_two_of_four_counts_along_inputs_of_one_output_and_tap(name):
    model, _ = zoo.make(name)
    masks = sc.prune(model, granularity="2:4").masks
    from secateur.targets import find_targets

    for key, facts in find_targets(model).items():
        canonical = facts.canonical(masks[key])  # [out, in, taps]
        assert (canonical.unflatten(1, (-1, 4)).sum(2) == 2).all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, sc.errors.BadSparsity, "how much should leave"),
        ({"sparsity": 90}, sc.errors.BadSparsity, r"for 90 % write 0\.9"),
        ({"sparsity": 0.5, "scope": "globl"}, sc.errors.UnknownName, "did you mean 'global'"),
        ({"sparsity": 0.5, "granularity": "3:x"}, sc.errors.UnknownName, "granularity '3:x' is unknown"),
        ({"sparsity": 0.9, "granularity": "2:4"}, sc.errors.BadSparsity, r"removes 0\.5 of the weights"),
        ({"granularity": "2:4", "min_kept": 3}, sc.errors.BadSparsity, "have no say"),
        ({"granularity": "2:4", "overrides": {"0": 0.1}}, sc.errors.BadSparsity, "have no say"),
        ({"granularity": "2:5"}, sc.errors.BadPattern, "16 input channels, which do not divide"),
        ({"sparsity": 0.5, "p": 3}, sc.errors.BadScores, "p is 1"),
        ({"sparsity": 0.5, "q": 3}, sc.errors.UnknownName, "no option 'q'"),
        ({"sparsity": 0.5, "method": "taylor"}, sc.errors.NeedsTask, "task="),
        ({"sparsity": 0.5, "method": "movement"}, sc.errors.NeedsTask, "gathered in training"),
        ({"sparsity": 0.5, "method": ":nothing"}, sc.errors.UnknownName, "cannot import"),
        ({"sparsity": 0.5, "method": Magnitude(), "p": 2}, sc.errors.UnknownName, "takes no further options"),
        ({"sparsity": 0.9, "min_kept": 60}, sc.errors.BadSparsity, "lower min_kept"),
        ({"sparsity": 0.5, "overrides": {"nope": 0.1}}, sc.errors.UnknownName, "'nope'"),
    ],
)
def test_refusals_say_what_is_wrong(options, error, words):
    model, _ = zoo.make("linear")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        sc.prune(model, **options)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_same_call_gives_the_same_masks():
    model, _ = zoo.make("lstm")
    for method in ("magnitude", "random"):
        assert sc.prune(model, method, sparsity=0.5).masks == sc.prune(model, method, sparsity=0.5).masks
    assert sc.prune(model, "random", sparsity=0.5).masks != sc.prune(model, "random", sparsity=0.5, seed=1).masks


def test_patterns_read_from_text():
    assert granularity_of("4:8").quota == 4
    for bad in ("4:4", "0:4", "block:0x1"):
        with pytest.raises(sc.errors.BadPattern):
            granularity_of(bad)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_squares_neither_vanish_nor_overflow(scale):
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]]) * scale
    assert sc.prune(layer, sparsity=0.5, p=2).masks["weight"].tolist() == [[False, False, True, True]]


def test_recurrent_weights_that_torch_holds_are_named():
    layer = torch_prune.l1_unstructured(nn.LSTM(4, 4), "weight_ih_l0", 0.5)
    with pytest.raises(sc.errors.UnknownLayer, match="absorb_"):
        sc.prune(layer, sparsity=0.5)


@pytest.mark.parametrize("name", ["gdp", "admm", "ecc", "alps", "gradual"])
def test_a_method_that_trains_is_named_as_it_is_written(name):
    with pytest.raises(UnknownName, match=r"use sc\.methods\.(\w+)\(") as refused:
        sc.prune(nn.Linear(4, 4), name, sparsity=0.5)
    written = str(refused.value).partition("sc.methods.")[2].partition("(")[0]
    assert hasattr(sc.methods, written)
