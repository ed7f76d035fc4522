"""What every method that takes channels out refuses, and what its receipt admits."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BadScores, BadSparsity, NarrowingFailed, NeedsTask, UnknownName, WrongModel

X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.wide, self.narrow, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 3)

    def forward(self, x):
        x = self.norm(self.first(x))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.narrow(torch.relu(self.wide(x)))).mean(1))


def convnet():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


IMAGE = torch.randn(1, 3, 8, 8)


@pytest.mark.parametrize("share", [{"sparsity": 0.5}, {"budget": "params:70%"}])
def test_groups_that_no_one_judged_are_named(share):
    how = {"granularity": "channel", "scope": "layer", "example_inputs": X[:1], "task": sc.Task([X])} | share
    model = Encoder().eval()
    said = sc.prune(model, "activation", **how).report.notes
    (note,) = [n for n in said if "says nothing about" in n]
    assert "attention." in note
    assert not [n for n in sc.prune(model, "magnitude", **how).report.notes if "says nothing about" in n]


@pytest.mark.parametrize("how", [{"sparsity": 0.5}, {"budget": "macs:50%"}])
def test_criteria_of_training_are_refused(how):
    with pytest.raises(NeedsTask, match="gathered in training"):
        sc.prune(convnet(), "movement", granularity="channel", example_inputs=IMAGE, **how)
    with pytest.raises(NeedsTask, match="gathered in training"):
        task = sc.Task([IMAGE], evaluate=lambda model: 1.0)
        sc.sensitivity(convnet(), task, method="movement", granularity="channel", example_inputs=IMAGE)


def test_compiled_and_scripted_models_are_named():
    how = {"granularity": "channel", "sparsity": 0.5, "example_inputs": IMAGE}
    with pytest.raises(WrongModel, match=r"torch\.compile"):
        sc.prune(torch.compile(convnet()), **how)
    with pytest.raises(WrongModel, match="TorchScript"):
        sc.prune(torch.jit.trace(convnet(), IMAGE), **how)


@pytest.mark.parametrize("scope", ["layr", "per_cost", "sensitive", "within"])
def test_scopes_that_are_offered_work(scope):
    with pytest.raises(UnknownName, match="'layer'" if scope == "layr" else "is none of") as caught:
        sc.prune(convnet(), sparsity=0.5, scope=scope)
    offered = str(caught.value).partition("is none of ")[2].partition(";")[0].partition(" (")[0].split(", ")
    assert {"layer", "global", "erk"} <= set(offered)
    for name in offered:
        assert sc.prune(convnet(), sparsity=0.5, scope=name).masks.kept > 0


@pytest.mark.parametrize("method", ["Slimming", "Stepwise", "GDP"])
@pytest.mark.parametrize("wrong", [{"round_to": 0}, {"round_to": 2.5}, {"min_kept": -3}])
def test_numbers_of_units(method, wrong):
    with pytest.raises(BadSparsity, match=next(iter(wrong))):
        getattr(sc.methods, method)(sparsity=0.5, **wrong)
    with pytest.raises(BadSparsity, match=next(iter(wrong))):
        sc.prune(convnet(), sparsity=0.5, granularity="channel", example_inputs=IMAGE, **wrong)


def test_the_receipt_says_the_budget_in_words():
    pruned = sc.prune(convnet(), budget="macs:50%", scope="layer", granularity="channel", example_inputs=IMAGE)
    assert "budget macs:50%, by scope 'layer'" in pruned.report.method


def test_a_loss_is_one_number():
    task = sc.Task([IMAGE.repeat(4, 1, 1, 1)], loss=lambda model, batch: model(batch).flatten(1).mean(1))
    with pytest.raises(NeedsTask, match=r"Task\.loss gave a tensor of shape \[4\]"):
        sc.prune(convnet(), "taylor", granularity="channel", sparsity=0.5, example_inputs=IMAGE, task=task)


def test_a_loss_has_a_gradient():
    task = sc.Task([IMAGE], loss=lambda model, batch: model(batch).detach().mean())
    with pytest.raises(NeedsTask, match=r"without a gradient, and .*needs one: look for detach"):
        sc.prune(convnet(), "taylor", granularity="channel", sparsity=0.5, example_inputs=IMAGE, task=task)


@pytest.mark.parametrize("method", ["magnitude", "random", "fpgm"])
@pytest.mark.parametrize(("place", "number"), [("0.weight", float("nan")), ("2.weight", float("inf"))])
def test_nan_is_named_where_it_is(method, place, number):
    model = convnet()
    model.get_parameter(place).data[0, 0, 0, 0] = number
    with pytest.raises(BadScores, match=f"1 of .* numbers of '{place}' are NaN or infinite"):
        sc.prune(model, method, granularity="channel", sparsity=0.5, example_inputs=IMAGE)


def test_outputs_that_are_no_numbers_agree_with_nothing():
    with pytest.raises(NarrowingFailed, match="cannot be compared"):
        sc.prune(convnet(), granularity="channel", sparsity=0.5, example_inputs=torch.full_like(IMAGE, float("nan")))


def test_widths_that_are_not_in_multiples_are_admitted(monkeypatch):
    tried, other = [], sc.prune(convnet(), granularity="channel", sparsity=0.5, example_inputs=IMAGE)

    def tried_first(self, model, **how):
        tried.append(self.round_to)
        if self.round_to == 8:
            raise sc.errors.OverBudget
        return other

    monkeypatch.setattr(sc.methods.Channel, "__call__", tried_first)
    pruned = sc.prune(convnet(), granularity="channel", budget="latency:50%", example_inputs=IMAGE)
    assert any("any width was allowed" in note for note in pruned.report.notes)
    assert tried == [8, 1]


def test_options_of_channels_are_among_those_there_are():
    with pytest.raises(UnknownName, match=r"no option 'round_too'; it has: p, round_to, .*did you mean 'round_to'"):
        sc.prune(convnet(), granularity="channel", sparsity=0.5, round_too=8, example_inputs=IMAGE)


def test_methods_of_masks_take_no_channels():
    with pytest.raises(UnknownName, match="Stepwise"):
        sc.methods.Iterative(sparsity=0.5, rounds=1, granularity="channel")(convnet(), lambda model: None, rewind=False)
