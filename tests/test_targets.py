"""What may be pruned, by layer type, name, glob, expression, type and module; ties once."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import zoo
from secateur.errors import NothingToPrune, UnknownLayer, UnknownName
from secateur.integrations import torch_prune
from secateur.targets import find_targets, left_alone

EXPECTED = {
    "linear": ["0.weight", "2.weight"],
    "conv2d": ["0.weight", "3.weight"],
    "transposed_grouped": ["weight"],
    "embedding_bag": ["weight"],
    "lstm": [f"cell.weight_{kind}_l{layer}" for layer in (0, 1) for kind in ("ih", "hh")],
    "lstm_projected": [f"cell.weight_{kind}_l0{end}" for end in ("", "_reverse") for kind in ("ih", "hh", "hr")],
    "gru_cell": ["weight_ih", "weight_hh"],
    "attention": ["attention.in_proj_weight", "attention.out_proj.weight"],
    "attention_separate": [f"attention.{n}_proj_weight" for n in "qkv"] + ["attention.out_proj.weight"],
    "tied": ["embedding.weight", "body.weight"],
    "twice": ["first.weight", "out.weight"],
    "hugging": ["2.weight"],  # our own class: unknown, so left alone
    "parametrised": ["2.weight"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_zoo(name):
    assert list(find_targets(zoo.make(name)[0])) == EXPECTED[name]


def test_what_is_left_alone_is_named():
    model, _ = zoo.make("hugging")
    assert left_alone(model, find_targets(model)) == ["0.weight"]


def make():
    return nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1)), "head": nn.Linear(4, 2)})


@pytest.mark.parametrize(
    "ignore",
    [
        "head",
        "head.weight",
        "*ead",
        r"re:h.*",
        ["head"],
        ("head", "head.*"),
        lambda m: m["head"],
        lambda m: [m["head"]],
    ],
)
def test_ways_to_say_ignore(ignore):
    model = make()
    found = find_targets(model, ignore=ignore(model) if callable(ignore) else ignore)
    assert list(found) == ["encoder.0.weight", "encoder.1.weight"]


def test_ignoring_a_type_or_a_parent():
    assert list(find_targets(make(), ignore=nn.Linear)) == ["encoder.1.weight"]
    assert list(find_targets(make(), ignore="encoder")) == ["head.weight"]


def test_biases_only_when_asked_for():
    found = find_targets(make(), ignore="encoder", include_bias=True)
    assert {name: facts.kind for name, facts in found.items()} == {"head.weight": "linear", "head.bias": "vector"}


def test_a_tied_weight_is_ignored_under_each_of_its_names():
    model, _ = zoo.make("tied")
    assert list(find_targets(model, ignore="head")) == ["body.weight"]


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (nn.ReLU, NothingToPrune, "no layer that Secateur knows"),
        (lambda: nn.Sequential(weight_norm(nn.Linear(2, 2))), NothingToPrune, "remove_parametrizations"),
        (lambda: nn.LazyLinear(3), NothingToPrune, "run the model once"),
        (lambda: nn.Linear(3, 3, device="meta"), NothingToPrune, "meta device"),
        (lambda: torch_prune.l1_unstructured(nn.Linear(3, 3), "weight", 1), UnknownLayer, "absorb_"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_refusals_say_why_and_what_to_do(model, error, words):
    with pytest.raises(error, match=words):
        find_targets(model())


def test_ignore_that_hits_nothing_or_everything():
    with pytest.raises(UnknownName, match=r"ignore='haed' matches nothing.*encoder"):
        find_targets(make(), ignore="haed")
    with pytest.raises(NothingToPrune, match="all 3 prunable parameters of ModuleDict are excluded"):
        find_targets(make(), ignore="*")


def test_a_layer_of_ones_own_is_taught_from_outside():
    from secateur.facts import LayerFacts
    from secateur.layers import facts_of

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(2, 4))

    facts_of.register(Own, lambda layer: {"kernel": LayerFacts(kind="linear", out_dim=1, in_dim=0)})
    assert list(find_targets(nn.Sequential(Own()))) == ["0.kernel"]
