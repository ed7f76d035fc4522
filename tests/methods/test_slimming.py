"""Slimming: the penalty to the bit, what leaves at the end, and refusals."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.coupling.tricks import difference, inputs, make
from torch import nn

import secateur as sc
from secateur.methods import Slimming

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def net(seed=0):
    """Eight and four channels that may leave, and an end that may not, each behind a batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def gammas(model):
    return model[1].weight, model[4].weight


def train(model, optimizer, run, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X).square().mean() + run.penalty()).backward()
        optimizer.step()
        run.step()


def test_the_penalty_by_hand():
    """0.1 * (eight scales of 1, less the first, which is -3, plus four of 0.5); the norm at the end is left alone."""
    model = net()
    run = Slimming(sparsity=0.5, strength=0.1).start(model, sgd(model), example_inputs=X)
    with torch.no_grad():
        gammas(model)[0][0] = -3.0
        gammas(model)[1].fill_(0.5)
    penalty = run.penalty()
    assert penalty.item() == pytest.approx(0.1 * (7 + 3 + 2))
    penalty.backward()
    assert gammas(model)[0].grad.tolist() == pytest.approx([-0.1] + [0.1] * 7)
    assert model[7].weight.grad is None


def test_under_sgd_it_is_the_authors_subgradient_to_the_bit():
    ours, theirs = net(), net()
    one, other = sgd(ours), sgd(theirs)
    run = Slimming(sparsity=0.5, strength=0.01).start(ours, one, example_inputs=X)
    train(ours, one, run, 5)
    for _ in range(5):
        other.zero_grad()
        theirs(X).square().mean().backward()
        for gamma in gammas(theirs):
            gamma.grad.add_(0.01 * torch.sign(gamma.detach()))
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_under_adam_a_scale_that_the_loss_does_not_hold_falls_by_the_learning_rate_whatever_the_strength():
    for strength in (1e-2, 1e-5):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        run = Slimming(sparsity=0.5, strength=strength).start(model, optimizer, example_inputs=X)
        for _ in range(10):
            optimizer.zero_grad()
            run.penalty().backward()
            optimizer.step()
        assert gammas(model)[0].detach().tolist() == pytest.approx([1 - 10 * 1e-3] * 8, abs=1e-4)


def test_the_strength_follows_its_schedule():
    model = net()
    method = Slimming(sparsity=0.5, strength=0.4, schedule=sc.Linear(begin_step=0, end_step=4, frequency=1))
    run = method.start(model, sgd(model, 0.0), example_inputs=X)
    found = []
    for _ in range(6):
        found.append(round(run.penalty().item() / 12, 6))
        run.step()
    assert found == [0.0, 0.1, 0.2, 0.3, 0.4, 0.4]


def test_scales_shrink_against_the_control():
    sums = []
    for strength in (0.0, 0.05):
        model = net()
        optimizer = sgd(model)
        run = Slimming(sparsity=0.5, strength=strength).start(model, optimizer, example_inputs=X)
        train(model, optimizer, run, 30)
        sums.append(sum(float(gamma.detach().abs().sum()) for gamma in gammas(model)))
    assert sums[1] < sums[0]


@settings(max_examples=12)
@given(st.lists(st.floats(0.01, 3), min_size=12, max_size=12, unique=True), st.sampled_from([0.25, 0.5, 0.75]))
def test_the_smallest_scales_leave_and_the_model_is_masked_alike(values, sparsity):
    model = net().eval()
    with torch.no_grad():
        gammas(model)[0].copy_(torch.tensor(values[:8]))
        gammas(model)[1].copy_(torch.tensor(values[8:]))
    scales = torch.tensor(values)
    run = Slimming(sparsity=sparsity, min_kept=0).start(model, sgd(model), example_inputs=X)
    keep = torch.zeros(12, dtype=torch.bool).index_fill_(0, scales.argsort(descending=True)[: run_kept(sparsity)], True)
    assume(keep[:8].any() and keep[8:].any())  # a layer without channels is no network; `min_kept` of 1 is the default
    pruned = run.finish()
    assert pruned.masks["1.weight"].tolist() == keep[:8].tolist()
    assert pruned.masks["4.weight"].tolist() == keep[8:].tolist()
    assert pruned.model[0].out_channels == int(keep[:8].sum())
    assert difference(model, pruned.model, torch.randn(3, 3, 6, 6)) < 1e-5
    assert model[0].weight.shape == (8, 3, 3, 3)  # the trained model keeps its shape, with zeros


def run_kept(sparsity):
    return round((1 - sparsity) * 12)


def test_residual_networks_budgets_and_files(tmp_path):
    model, x = make("residual"), inputs("residual")
    run = Slimming(budget="macs:50%", round_to=2).start(model, sgd(model), example_inputs=x)
    pruned = run.finish()
    assert 0 < pruned.report.after.macs <= 0.5 * pruned.report.before.macs
    assert any("Budget: at most" in note for note in pruned.report.notes)
    assert any("batch-norm scales" in note for note in pruned.report.notes)
    assert pruned.report.groups
    sc.save(pruned, tmp_path / "slim.safetensors")
    again = sc.load(tmp_path / "slim.safetensors", make("residual", seed=5))
    assert difference(again.model.eval(), pruned.model, x) == 0
    assert again.masks == pruned.masks


def test_what_is_ignored_is_neither_penalised_nor_removed():
    model = net()
    run = Slimming(sparsity=0.5, strength=1.0, ignore=["0"]).start(model, sgd(model), example_inputs=X)
    assert run.penalty().item() == 4
    assert run.finish().model[0].out_channels == 8


def test_refusals():
    model = net()
    start = Slimming(sparsity=0.5).start
    with pytest.raises(sc.errors.NeedsTask, match="example_inputs="):
        start(model, sgd(model))
    bare = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(sc.errors.NothingToPrune, match="batch norm with a scale"):
        start(bare, sgd(bare), example_inputs=torch.ones(1, 3))
    with pytest.raises(sc.errors.WrongModel, match="trains none of the batch-norm scales"):
        start(model, torch.optim.SGD(model[0].parameters(), lr=0.1), example_inputs=X)
    with pytest.raises(sc.errors.BadSchedule, match="strength=-1 must be 0"):
        Slimming(sparsity=0.5, strength=-1)
    with pytest.raises(sc.errors.BadSparsity, match=r"pass one of sparsity= .* both were given"):
        Slimming(sparsity=0.5, budget="macs:50%").start(model, sgd(model), example_inputs=X)
    with pytest.raises(sc.errors.OverBudget):
        Slimming(budget="macs:1%").start(model, sgd(model), example_inputs=X)
    late = Slimming(sparsity=0.5, schedule=sc.Linear(begin_step=0, end_step=9))
    with pytest.raises(sc.errors.BadSchedule, match="ends at step 9, but training stops after 8"):
        late.start(model, sgd(model), example_inputs=X, total_steps=8)
    with pytest.raises(sc.errors.BadSchedule, match="ends at step 9, but training stops after 0"):
        late.start(model, sgd(model), example_inputs=X, total_steps=9).finish()


def test_a_run_is_no_value():
    model = net()
    run = Slimming(sparsity=0.5).start(model, sgd(model), example_inputs=X)
    for wrong in (copy.deepcopy, lambda r: r.__reduce__()):
        with pytest.raises(TypeError, match=r"run.state_dict\(\)"):
            wrong(run)
