"""The contracts of ``torch.nn.utils.prune``, held by torch itself and by our functions, side by side."""

import copy
import pickle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as theirs

import secateur as sc
import zoo
from secateur.integrations import torch_prune as ours
from secateur.integrations.torch_layout import kept_of

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
BOTH = pytest.mark.parametrize("prune", [theirs, ours], ids=["torch", "secateur"])
LAYERS = [lambda: nn.Linear(5, 7), lambda: nn.Conv3d(2, 2, 2)]


def layer_of(values):
    """A linear layer with these weights."""
    weight = torch.tensor(values, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight)
    return layer


@BOTH
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("make", LAYERS)
def test_layout_sizes_values_and_removal(prune, make, name):
    layer = make()
    before = getattr(layer, name).detach().clone()
    prune.random_unstructured(layer, name, amount=0.5)
    mask, original = getattr(layer, f"{name}_mask"), getattr(layer, f"{name}_orig")
    assert mask.shape == original.shape == getattr(layer, name).shape == before.shape
    assert torch.equal(original, before)
    assert torch.equal(getattr(layer, name), before * mask)
    assert name not in dict(layer.named_parameters())
    assert name not in layer.state_dict()
    assert prune.is_pruned(layer)
    sparse = getattr(layer, name).detach().clone()
    prune.remove(layer, name)
    assert torch.equal(getattr(layer, name), sparse)
    assert {n for n, _ in layer.named_parameters()} == {"weight", "bias"}
    assert not list(layer.buffers())
    assert not prune.is_pruned(layer)


@BOTH
def test_removing_what_is_not_pruned_is_an_error(prune):
    with pytest.raises(ValueError):
        prune.remove(nn.Linear(2, 2), "weight")


@BOTH
def test_identity_changes_neither_output_nor_gradient(prune):
    layer, x = nn.Linear(5, 2), torch.ones(1, 5)
    before = layer(x)
    prune.identity(layer, "weight")
    after = layer(x)
    assert torch.equal(before, after)
    assert torch.equal(layer(x), after)
    after.sum().backward()
    assert torch.equal(layer.weight_orig.grad, torch.ones(2, 5))


@BOTH
def test_masked_weights_get_no_gradient(prune):
    layer, mask = nn.Linear(3, 2), torch.tensor([[1, 0, 1], [0, 1, 1]])
    prune.custom_from_mask(layer, "weight", mask)
    layer(torch.ones(1, 3)).sum().backward()
    assert torch.equal(layer.weight_orig.grad, mask.float())


@BOTH
def test_parameters_keep_their_identity(prune):
    layer = nn.Linear(5, 2, bias=False)
    parameter = layer.weight
    prune.l1_unstructured(layer, "weight", amount=0.9)
    assert next(layer.parameters()) is parameter
    prune.remove(layer, "weight")
    assert next(layer.parameters()) is parameter


@BOTH
def test_counts_by_hand_and_again_on_what_is_left(prune):
    layer = layer_of([[1, 2, 3, 4], [-4, -3, -2, -1]])
    prune.l1_unstructured(layer, "weight", amount=2)
    assert layer.weight.tolist() == [[0, 2, 3, 4], [-4, -3, -2, 0]]
    prune.l1_unstructured(layer, "weight", amount=2)
    assert layer.weight.tolist() == [[0, 0, 3, 4], [-4, -3, 0, 0]]
    prune.l1_unstructured(layer, "weight", amount=0.5)  # half of the four that are left
    assert layer.weight.tolist() == [[0, 0, 0, 4], [-4, 0, 0, 0]]


@BOTH
def test_importance_scores_take_the_place_of_weights(prune):
    layer = layer_of([[1, 2, 3, 4], [-4, -3, -2, -1]])
    scores = torch.tensor([[4.0, 2, 1, 3], [-3, -1, -2, -4]])
    prune.l1_unstructured(layer, "weight", amount=2, importance_scores=scores)
    assert layer.weight.tolist() == [[1, 2, 0, 4], [-4, 0, -2, -1]]
    prune.l1_unstructured(layer, "weight", amount=2, importance_scores=scores)
    assert layer.weight.tolist() == [[1, 0, 0, 4], [-4, 0, 0, -1]]


@BOTH
def test_global_ranking_by_hand_with_and_without_scores(prune):
    for with_scores in (False, True):
        m, n = layer_of([[1, 2, 3, 4], [-4, -3, -2, -1]]), layer_of([[0, 0.5, -2]])
        scores = {
            (m, "weight"): torch.tensor([[4.0, 2, 1, 3], [-3, -1, -2, -4]]),
            (n, "weight"): torch.tensor([[0, 10.0, -0.25]]),
        }
        places = [(m, "weight"), (n, "weight")]
        given = {"importance_scores": scores} if with_scores else {}
        prune.global_unstructured(places, pruning_method=theirs.L1Unstructured, amount=4, **given)
        if with_scores:
            assert m.weight.tolist() == [[1, 2, 0, 4], [-4, 0, -2, -1]]
            assert n.weight.tolist() == [[0, 0.5, 0]]
        else:
            assert m.weight.tolist() == [[0, 2, 3, 4], [-4, -3, -2, 0]]
            assert n.weight.tolist() == [[0, 0, -2]]


@BOTH
def test_channels_by_norm_along_any_dimension(prune):
    layer = nn.Conv2d(3, 1, 2)
    layer.weight.data = torch.tensor(
        [[[[1.0, 2.0], [1.0, 2.5]], [[0.5, 1.0], [0.1, 0.1]], [[-3.0, -5.0], [0.1, -1.0]]]]
    )
    prune.ln_structured(layer, "weight", amount=1, n=2, dim=1)
    expected = torch.ones(1, 3, 2, 2)
    expected[:, 1] = 0
    assert torch.equal(layer.weight_mask, expected)
    prune.ln_structured(layer, "weight", amount=1, n=1, dim=-1)
    expected[..., 0] = 0
    assert torch.equal(layer.weight_mask, expected)


@BOTH
def test_channel_amounts_count_the_channels_that_are_left(prune):
    layer = layer_of([[float(o + 1)] * 3 for o in range(8)])
    for left in (4, 2, 1):
        prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
        assert int(layer.weight_mask.any(1).sum()) == left
    assert layer.weight_mask[-1].tolist() == [1, 1, 1]


@BOTH
@pytest.mark.parametrize(
    ("amount", "error"),
    [
        ("a word", TypeError),
        (None, TypeError),
        (1.1, ValueError),
        (20.0, ValueError),
        (-10, ValueError),
        (-0.1, ValueError),
        (36, ValueError),
    ],
)
def test_impossible_amounts_change_nothing(prune, amount, error):
    layer = nn.Linear(5, 7)
    with pytest.raises(error):
        prune.l1_unstructured(layer, "weight", amount=amount)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert not prune.is_pruned(layer)


@BOTH
def test_vectors_have_no_channels_and_dimensions_exist(prune):
    with pytest.raises(ValueError):
        prune.ln_structured(nn.Linear(3, 3), "bias", amount=1, n=2, dim=0)
    with pytest.raises(IndexError):
        prune.ln_structured(nn.Linear(3, 3), "weight", amount=1, n=2, dim=2)
    with pytest.raises(TypeError):
        prune.global_unstructured([(nn.Linear(3, 3), "weight")], pruning_method=theirs.LnStructured, amount=1)


@BOTH
@pytest.mark.parametrize("make", LAYERS)
def test_pickling_and_deep_copies(prune, make):
    layer = prune.l1_unstructured(make(), "weight", amount=0.5)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again.weight, layer.weight)
    assert prune.is_pruned(again)
    if prune is ours:  # torch cannot: its weight is no leaf
        twin = copy.deepcopy(layer)
        assert torch.equal(twin.weight_mask, layer.weight_mask)
        assert twin.weight_orig is not layer.weight_orig


@BOTH
def test_recurrent_layers_keep_their_flat_list(prune):
    lstm = nn.LSTM(8, 8)
    prune.l1_unstructured(lstm, "weight_ih_l0", 0.5)
    assert sum(isinstance(p, nn.Parameter) for p in lstm._flat_weights) == 3
    sparse, x = lstm.weight_ih_l0.detach().clone(), torch.randn(3, 2, 8)
    held = lstm(x)[0]
    prune.remove(lstm, "weight_ih_l0")
    assert sum(isinstance(p, nn.Parameter) for p in lstm._flat_weights) == 4
    assert torch.equal(lstm.weight_ih_l0, sparse)
    assert torch.equal(lstm(x)[0], held)


@BOTH
def test_two_calls_make_a_container(prune):
    layer = nn.Conv3d(2, 2, 2)
    prune.l1_unstructured(layer, "weight", amount=0.1)
    first = layer.weight_mask.clone()
    prune.ln_structured(layer, "weight", amount=0.3, n=2, dim=0)
    (hook,) = layer._forward_pre_hooks.values()
    assert isinstance(hook, theirs.PruningContainer)
    assert len(hook) == 2
    assert hook._tensor_name == "weight"
    assert not layer.weight_mask[first == 0].any()


def test_ties_go_to_the_earlier_weight():
    layer = layer_of([[2, -2, 0, 2], [0, 2, -2, 0]])
    ours.l1_unstructured(layer, "weight", amount=5)
    assert layer.weight_mask.tolist() == [[1, 1, 0, 1], [0, 0, 0, 0]]


def tried(function, module, *args, **options):
    """The mask that is left, or ``None`` where the call was refused."""
    try:
        function(module, *args, **options)
    except (ValueError, IndexError):
        return None
    return module.weight_mask != 0


shapes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
amounts = st.floats(0, 1) | st.integers(0, 10)


@settings(max_examples=60)
@given(shape=shapes, calls=st.lists(amounts, min_size=1, max_size=3), seed=st.integers(0, 999), scored=st.booleans())
def test_unstructured_as_torch_does_it(shape, calls, seed, scored):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(shape, generator=generator)  # noqa: E731  # no ties
    modules = [nn.Module(), nn.Module()]
    weight = draw()
    for module in modules:
        module.weight = nn.Parameter(weight.clone())
    for amount in calls:
        scores = draw() if scored else None
        torchs, secateurs = (
            tried(prune.l1_unstructured, module, "weight", amount=amount, importance_scores=scores)
            for prune, module in zip([theirs, ours], modules, strict=True)
        )
        if torchs is None:
            assert secateurs is None
            return
        assert torch.equal(torchs, secateurs)
        assert torch.equal(modules[0].weight, modules[1].weight)


@settings(max_examples=60)
@given(
    shape=shapes,
    calls=st.lists(
        st.tuples(amounts, st.integers(-4, 3), st.sampled_from([1, 2, 3, float("inf"), float("-inf")])),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 999),
)
def test_structured_as_torch_does_it(shape, calls, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    modules = [nn.Module(), nn.Module()]
    for module in modules:
        module.weight = nn.Parameter(weight.clone())
    for amount, dim, norm in calls:
        torchs, secateurs = (
            tried(prune.ln_structured, module, "weight", amount=amount, n=norm, dim=dim)
            for prune, module in zip([theirs, ours], modules, strict=True)
        )
        if torchs is None:
            assert secateurs is None
            return
        if not torch.equal(torchs, secateurs):  # torch leaves the order of equal norms open
            dims = [d for d in range(len(shape)) if d != dim % len(shape)]
            norms = torch.linalg.vector_norm(modules[0].weight_orig.detach(), ord=norm, dim=dims)
            assume(len(calls) == 1 and norms.unique().numel() == norms.numel())
        assert torch.equal(torchs, secateurs)


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), amount=st.floats(0, 1), seed=st.integers(0, 99))
def test_global_as_torch_does_it_twice_over(sizes, amount, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(1, size, generator=generator) for size in sizes]
    found = []
    for prune in (theirs, ours):
        layers = [layer_of(weight.tolist()) for weight in weights]
        for _ in range(2):
            prune.global_unstructured(
                [(m, "weight") for m in layers], pruning_method=theirs.L1Unstructured, amount=amount
            )
        found.append([m.weight_mask != 0 for m in layers])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@settings(max_examples=30)
@given(shape=shapes, amount=st.floats(0, 1) | st.integers(0, 3), dim=st.integers(-2, 1), seed=st.integers(0, 99))
def test_random_removal_counts_as_torch_counts(shape, amount, dim, seed):
    left = {}
    for prune in (theirs, ours):
        torch.manual_seed(seed)
        for function, rest in ((prune.random_unstructured, {}), (prune.random_structured, {"dim": dim})):
            module = nn.Module()
            module.weight = nn.Parameter(torch.ones(shape))
            mask = tried(function, module, "weight", amount=amount, **rest)
            left.setdefault(function.__name__, set()).add(None if mask is None else int(mask.sum()))
    assert all(len(counts) == 1 for counts in left.values())


def test_random_removal_takes_a_generator_and_leaves_the_global_one():
    layers, masks, before = [nn.Linear(9, 9), nn.Linear(9, 9)], [], torch.get_rng_state()
    for layer in layers:
        ours.random_unstructured(layer, "weight", 0.5, generator=torch.Generator().manual_seed(3))
        masks.append(layer.weight_mask)
    assert torch.equal(*masks)
    assert torch.equal(torch.get_rng_state(), before)


# The way in and out of the layout


@pytest.mark.parametrize("name", [n for n in zoo.ZOO if n not in ("parametrised", "hugging")])
def test_written_absorbed_and_read_again_over_the_zoo(name):
    model, x = zoo.make(name)
    model.eval()
    masks = sc.prune(model, sparsity=0.5).masks
    keys, parameters = list(model.state_dict()), list(model.parameters())
    expected = masks.apply_(copy.deepcopy(model))(x)
    ours.write_(model, masks)
    assert theirs.is_pruned(model)
    assert torch.equal(model(x), expected)
    assert ours.read(model).keys() >= masks.keys()
    assert all(torch.equal(ours.read(model)[n], masks[n]) for n in masks)
    back = ours.absorb_(model)
    assert not theirs.is_pruned(model)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(x), expected)
    assert all(torch.equal(back[n], masks[n]) for n in masks)
    assert sc.Masks.of_zeros(copy.deepcopy(model), masks) == masks


@pytest.mark.parametrize("name", ["linear", "conv2d", "lstm", "tied"])
def test_what_torch_pruned_is_taken_over_and_what_we_write_torch_removes(name):
    model, _ = zoo.make(name)
    model.eval()
    masks = sc.prune(model, sparsity=0.5).masks
    ours.write_(model, masks)
    for path, module in model.named_modules():
        for own in [n.removesuffix("_orig") for n, _ in module.named_parameters(recurse=False) if n.endswith("_orig")]:
            theirs.remove(module, own)
            assert torch.equal(
                module.get_parameter(own) != 0, masks.get(f"{path}.{own}", masks.get("embedding.weight"))
            )
    assert not theirs.is_pruned(model)


def test_an_optimizer_goes_on_after_absorbing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    theirs.l1_unstructured(model[0], "weight", 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = ours.absorb_(model)
    with sc.hold(model, masks, optimizer):
        for _ in range(3):
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
    assert torch.equal(model[0].weight != 0, masks["0.weight"])


def test_nan_behind_the_mask_is_gone():
    layer = theirs.custom_from_mask(layer_of([[1, 2]]), "weight", torch.tensor([[1, 0]]))
    layer.weight_orig.data[0, 1] = torch.nan
    ours.absorb_(layer)
    assert layer.weight.tolist() == [[1, 0]]


def test_checkpoints_of_pruned_models_load_into_plain_ones():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    theirs.l1_unstructured(model[0], "weight", 0.5)
    state, masks = ours.absorb_state_dict(model.state_dict())
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    plain.load_state_dict(state)
    assert torch.equal(plain[0].weight, model[0].weight)
    assert torch.equal(masks["0.weight"], kept_of(model[0], "weight"))
    assert list(masks) == ["0.weight"]


def test_writing_twice_is_refused_and_changes_nothing():
    model = nn.Linear(4, 4)
    masks = sc.prune(model, sparsity=0.5).masks
    ours.write_(model, masks)
    with pytest.raises(sc.errors.WrongModel, match=r"absorb_"):
        ours.write_(model, masks)
    with pytest.raises(sc.errors.WrongModel):
        ours.write_(nn.Linear(3, 3), masks)


def test_pruning_a_model_that_torch_holds_says_the_way_out():
    model = nn.Sequential(theirs.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), nn.Linear(4, 4))
    with pytest.raises(sc.errors.UnknownLayer, match=r"holds 0\.weight .*absorb_"):
        sc.prune(model, sparsity=0.5)
    ours.absorb_(model)
    assert list(sc.prune(model, sparsity=0.5).masks) == ["0.weight", "1.weight"]
