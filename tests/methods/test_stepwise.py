"""Stepwise: the steps add up to one structure, shares by hand, budgets that hold in every step, and an early stop."""

import copy

import pytest
import torch
from tests.coupling.tricks import NAMES, difference, inputs, make, masked
from torch import nn

import secateur as sc
from secateur.allocations.global_ import Global
from secateur.criteria.magnitude import Magnitude
from secateur.methods import Channel, Stepwise


def idle(model, step):
    """Training that changes nothing."""


def nudge(model, step):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))


def wide(width=64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)), torch.ones(1, 4)


@pytest.mark.parametrize("name", NAMES)
def test_without_training_the_steps_equal_the_masks(name):
    """Masks are on the original: applied there, they compute what three narrowings in a row compute."""
    model, x = make(name), inputs(name)
    pruned = Stepwise(sparsity=0.6, steps=3)(model, idle, example_inputs=x)
    for parameter, mask in pruned.masks.items():
        assert mask.shape == model.get_parameter(parameter).shape
        assert pruned.model.get_parameter(parameter).numel() == int(mask.sum())
    assert difference(masked(model, pruned.masks), pruned.model, inputs(name, 3, 4)) < 1e-5
    kept = sum(group.kept for group in pruned.report.groups)
    assert kept == pruned.report.settings["history"][-1]["units"]
    wanted = max(round(0.4 * sum(g.units for g in pruned.report.groups)), len(pruned.report.groups))
    # once one key head is left, its query heads may leave one by one: the steps see more units than there were at first
    assert kept == wanted + (name == "grouped_query_expand")


@pytest.mark.parametrize("name", ["residual", "dense_concat", "attention_fused", "lstm", "grouped"])
def test_a_trained_student_loads_into_the_original_class(name, tmp_path):
    model, x = make(name), inputs(name)
    pruned = Stepwise(sparsity=0.5, steps=2)(model, nudge, example_inputs=x)
    sc.save(pruned, tmp_path / "steps.safetensors")
    again = sc.load(tmp_path / "steps.safetensors", make(name, seed=7))
    assert difference(pruned.model, again.model.eval(), inputs(name, 3, 4)) == 0
    assert again.masks == pruned.masks
    assert again.structure == pruned.structure
    assert again.report == pruned.report


def test_one_step_is_one_shot():
    model, x = make("residual"), inputs("residual")
    ours = Stepwise(sparsity=0.5, steps=1)(model, idle, example_inputs=x)
    theirs = Channel(criterion=Magnitude(), allocation=Global(sparsity=0.5, min_kept=1))(model, example_inputs=x)
    assert ours.masks == theirs.masks
    assert ours.structure == theirs.structure
    assert ours.report.groups == theirs.report.groups


@pytest.mark.parametrize(("geometric", "widths"), [(True, [32, 16]), (False, [40, 16])])
def test_shares_by_hand(geometric, widths):
    """64 units to a quarter in two steps: a half and a half of that, or three eighths twice."""
    model, x = wide()
    seen = []
    pruned = Stepwise(sparsity=0.75, steps=2, geometric=geometric)(
        model, lambda m, step: seen.append((step, m[0].out_features)), example_inputs=x
    )
    assert seen == list(zip([1, 2], widths, strict=True))
    assert [entry["units"] for entry in pruned.report.settings["history"]] == widths
    assert model[0].out_features == 64


def test_a_group_down_to_its_last_unit_still_counts():
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 2))
    pruned = Stepwise(sparsity=0.8, steps=4)(model, idle, example_inputs=torch.ones(1, 4))
    assert pruned.report.settings["history"][-1]["units"] == round(0.2 * 22)
    assert pruned.model[0].out_features + pruned.model[2].out_features == round(0.2 * 22)


@pytest.mark.parametrize("budget", ["macs:25%", "params:200", "bytes:50%"])
def test_budgets_hold_in_every_step(budget):
    model, x = wide(2000 if "bytes" in budget else 64)  # the receipt in the file's header takes 2 kB
    pruned = Stepwise(budget=budget, steps=3)(model, nudge, example_inputs=x)
    history = pruned.report.settings["history"]
    assert all(entry["cost"] <= entry["asked"] for entry in history)
    assert history[0]["cost"] > history[1]["cost"] > history[2]["cost"]
    if (
        budget == "macs:25%"
    ):  # 6 multiply-accumulates for each of 64 units: 384, and a quarter of it in thirds of the way
        assert [entry["asked"] for entry in history] == pytest.approx([384 * 0.25 ** (k / 3) for k in (1, 2, 3)])
        assert [entry["cost"] for entry in history] == [240, 150, 96]


@pytest.mark.parametrize(("good", "width", "back"), [(2, 29, "the model of step 2"), (0, 64, "the dense model")])
def test_a_score_below_the_floor_stops_and_the_last_good_model_comes_back(good, width, back):
    model, x = wide()
    trained, seen = [], []

    def train(m, step):
        trained.append(step)
        nudge(m, step)
        if step > good:
            m[2].bias.data.fill_(-1.0)

    task = sc.Task(evaluate=lambda m: 0.0 if float(m[2].bias.detach().sum()) == -2 else 1.0)
    pruned = Stepwise(sparsity=0.8, steps=4, min_score=0.5)(
        model, train, task=task, example_inputs=x, on_step=lambda entry: seen.append(entry["kept"])
    )
    assert trained == list(range(1, good + 2))
    assert seen == [True] * good + [False]
    assert pruned.model is not model
    assert pruned.model[0].out_features == width
    assert pruned.report.after.score == 1.0
    assert pruned.masks["0.weight"].any(1).sum() == width
    assert any(f"{back} came back and the goal was not reached" in note for note in pruned.report.notes)
    assert pruned.report.settings["history"][-1]["score_after"] == 0.0


def test_scores_before_and_after_are_in_the_history():
    model, x = wide()
    task = sc.Task(evaluate=lambda m: float(m[2].bias.detach().sum()))
    pruned = Stepwise(sparsity=0.5, steps=2)(
        model, lambda m, step: m[2].bias.data.fill_(step), task=task, example_inputs=x
    )
    history = pruned.report.settings["history"]
    assert [entry["score_after"] for entry in history] == [2.0, 4.0]
    assert history[1]["score_before"] == 2.0


def test_statistics_are_refreshed_before_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()
    batches = [torch.randn(16, 1, 8, 8) for _ in range(3)]
    found = []
    method = Stepwise(sparsity=0.5, steps=2, recalibrate=True)
    method(
        model,
        lambda m, step: found.append(copy.deepcopy(m)),
        task=sc.Task(batches),
        example_inputs=batches[0],
    )
    for student in found:
        means = torch.stack([student[0](x).mean((0, 2, 3)) for x in batches]).mean(0)
        torch.testing.assert_close(student[1].running_mean, means.detach())
    with pytest.raises(sc.errors.NeedsTask, match="recalibrate=True"):
        method(model, idle, example_inputs=batches[0])


def test_criteria_look_at_the_trained_student():
    """A criterion that sees the narrowed shapes, and with them the task."""
    model, x = wide()
    seen = []
    task = sc.Task([torch.randn(8, 4)], loss=lambda m, b: seen.append(m[0].out_features) or m(b).square().mean())
    Stepwise(sparsity=0.75, steps=2, criterion="taylor_map")(model, nudge, task=task, example_inputs=x)
    assert seen == [64, 32]


def test_what_is_ignored_stays_also_if_it_is_a_module():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    pruned = Stepwise(sparsity=0.5, steps=2, ignore=[model[0]])(model, idle, example_inputs=torch.ones(1, 4))
    assert (pruned.model[0].out_features, pruned.model[2].out_features) == (8, 4)


def test_a_network_that_was_narrowed_before_remembers_its_class(tmp_path):
    model, x = wide()
    half = sc.prune(model, sparsity=0.5, granularity="channel", example_inputs=x)
    pruned = Stepwise(sparsity=0.5, steps=2)(half.model, nudge, example_inputs=x)
    assert pruned.masks["0.weight"].shape == (32, 4)  # on what went in
    sc.save(pruned, tmp_path / "again.safetensors")
    again = sc.load(tmp_path / "again.safetensors", wide()[0])  # an instance of the class
    assert again.model[0].out_features == 16
    assert difference(again.model, pruned.model, x) == 0


def test_refusals():
    model, x = wide()

    def never(m, step):
        raise AssertionError

    with pytest.raises(sc.errors.BadSchedule, match="at least one step"):
        Stepwise(sparsity=0.5, steps=0)
    for steps in (2.5, True):
        with pytest.raises(sc.errors.BadSchedule, match="whole numbers"):
            Stepwise(sparsity=0.5, steps=steps)
    with pytest.raises(sc.errors.BadSparsity, match="min_score='a'"):
        Stepwise(sparsity=0.5, min_score="a")
    for wrong, error in [
        (Stepwise(budget=0.5), sc.errors.UnknownName),
        (Stepwise(sparsity=0.5, min_score=0.9), sc.errors.NeedsTask),
        (Stepwise(budget="params:3"), sc.errors.OverBudget),
        (Stepwise(), sc.errors.BadSparsity),
        (Stepwise(sparsity=0.5, criterion="movement"), sc.errors.NeedsTask),
        (Stepwise(sparsity=0.5, criterion="nope"), sc.errors.UnknownName),
        (Stepwise(sparsity=0.5, ignore=["nope"]), sc.errors.UnknownName),
    ]:
        with pytest.raises(error):
            wrong(model, never, example_inputs=x)
    with pytest.raises(sc.errors.NeedsTask, match="example_inputs="):
        Stepwise(sparsity=0.5)(model, never)
    with pytest.raises(sc.errors.WrongModel, match="in place"):
        Stepwise(sparsity=0.5)(model, lambda m, _: copy.deepcopy(m), example_inputs=x)


def test_goals_that_the_criterion_cannot_reach_are_refused_before_training():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def never(m, step):
        raise AssertionError

    with pytest.raises(sc.errors.OverBudget, match="says nothing about 1 of 2 groups"):
        Stepwise(criterion="bn_scale", budget="params:40%")(model, never, example_inputs=torch.randn(3, 4))
