"""Gradual pruning: the schedule's numbers, exact ends, refusals, and resuming bit for bit."""

import copy
import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import oracles
import secateur as sc
import zoo
from secateur.criteria.movement import Movement
from secateur.criteria.random import Random
from secateur.methods.gradual import Gradual

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def batches(steps):
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(4, 8, generator=generator) for _ in range(steps)]


def advance(model, optimizer, run, some, each=lambda: None):
    for batch in some:
        optimizer.zero_grad()
        (zoo.loss_of(model, batch) + run.penalty()).backward()
        optimizer.step()
        run.step()
        each()


def removed(run):
    return {name: int((~mask).sum()) for name, mask in run.masks.items()}


@settings(max_examples=25)
@given(
    begin=st.integers(0, 5),
    length=st.integers(1, 17),
    frequency=st.integers(1, 9),
    final=st.sampled_from([0.1, 0.5, 0.83, 0.97]),
    scope=st.sampled_from(["global", "layer", "erk", "lamp"]),
)
def test_masks_shrink_along_the_formula_to_the_exact_end(begin, length, frequency, final, scope):
    model, _ = zoo.make("linear")
    total = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    schedule = sc.PolynomialDecay(begin_step=begin, end_step=begin + length, frequency=frequency)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    run = Gradual(sparsity=final, schedule=schedule, scope=scope).start(model, optimizer)
    steps = [0]
    previous = [run.masks]

    def check():
        steps[0] += 1
        assert run.masks == (run.masks & previous[0])
        previous[0] = run.masks
        if schedule.updates_at(steps[0]) and scope == "global":
            now = oracles.schedule_by_hand(steps[0], initial=0.0, final=final, begin=begin, end=begin + length, power=3)
            assert run.masks.kept == round((1 - now) * total)
        for name, mask in run.masks.items():
            assert not model.get_parameter(name).detach()[~mask].any()

    advance(model, optimizer, run, batches(begin + length), each=check)
    pruned = run.finish()
    assert pruned.model is model
    if scope != "layer":
        assert pruned.masks.kept == round((1 - final) * total)
    else:
        assert all(int(m.sum()) == round((1 - final) * m.numel()) for m in pruned.masks.values())


def test_the_toolkits_numbers_by_hand():
    """0.5 to 0.8 over 3,000 steps, cubic; after a third: 0.8 - 0.3 * (2/3)^3 = 0.7111."""
    schedule = sc.PolynomialDecay(begin_step=2000, end_step=5000, initial_sparsity=0.5)
    found = [round(schedule(step, 0.8), 4) for step in (0, 1999, 2000, 3000, 3500, 5000, 9000)]
    assert found == [0.0, 0.0, 0.5, 0.7111, 0.7625, 0.8, 0.8]
    assert [step for step in range(1900, 2400) if schedule.updates_at(step)] == [2000, 2100, 2200, 2300]


METHODS = {
    "magnitude": Gradual(sparsity=0.8, schedule=sc.PolynomialDecay(begin_step=2, end_step=12, frequency=3)),
    "movement": Gradual(
        sparsity=0.7, criterion=Movement(), schedule=sc.Linear(begin_step=1, end_step=11, frequency=2), scope="layer"
    ),
    "cyclic": Gradual(sparsity=0.75, schedule=sc.Cyclic(begin_step=0, end_step=12, cycles=3, frequency=2)),
    "at_once": Gradual(sparsity=0.5, criterion=Random(seed=3), schedule=sc.Constant(begin_step=0)),
    "n_of_m": Gradual(granularity="2:4", schedule=sc.Linear(begin_step=0, end_step=12, frequency=4)),
    "filters": Gradual(
        sparsity=0.5,
        granularity="filter",
        schedule=sc.Linear(begin_step=0, end_step=12, frequency=4),
        scope="erk",
        min_kept=1,
    ),
}


@pytest.mark.parametrize("stop", [1, 5, 8, 12])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_in_the_same_bits(name, optimizer, stop):
    some, method = batches(15), METHODS[name]
    model, _ = zoo.make("linear")
    first = OPTIMIZERS[optimizer](model.parameters())
    run, checkpoint = method.start(model, first), None
    advance(model, first, run, some[:stop])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": first.state_dict(), "run": run.state_dict()}, file)
    advance(model, first, run, some[stop:])
    straight = run.finish()
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    fresh, _ = zoo.make("linear", seed=99)
    second = OPTIMIZERS[optimizer](fresh.parameters())
    again = method.start(fresh, second)
    fresh.load_state_dict(checkpoint["model"])
    second.load_state_dict(checkpoint["optimizer"])
    again.load_state_dict(checkpoint["run"])
    advance(fresh, second, again, some[stop:])
    resumed = again.finish()
    assert resumed.masks == straight.masks
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_loading_the_model_before_start_is_as_good_or_refused(name):
    """Where `start` prunes at once it would overwrite what was loaded; it says so."""
    some, method = batches(15), METHODS[name]
    model, _ = zoo.make("linear")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    run = method.start(model, optimizer)
    advance(model, optimizer, run, some[:7])
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), run.state_dict()))
    advance(model, optimizer, run, some[7:])
    fresh, _ = zoo.make("linear", seed=99)
    fresh.load_state_dict(state[0])
    second = OPTIMIZERS["sgd"](fresh.parameters())
    second.load_state_dict(state[1])
    again = method.start(fresh, second)
    if name == "at_once":
        with pytest.raises(sc.errors.WrongModel, match="start first, then load"):
            again.load_state_dict(state[2])
        return
    again.load_state_dict(state[2])
    advance(fresh, second, again, some[7:])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_a_schedule_that_ends_after_training_is_refused_at_both_ends():
    model, _ = zoo.make("linear")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = Gradual(sparsity=0.9, schedule=sc.PolynomialDecay(begin_step=0, end_step=10, frequency=4))
    with pytest.raises(
        sc.errors.BadSchedule, match=r"ends at step 10, but training stops after 9 steps.*end_step to 9"
    ):
        method.start(model, optimizer, total_steps=9)
    assert not optimizer._optimizer_step_post_hooks
    run = method.start(model, optimizer, total_steps=10)
    advance(model, optimizer, run, batches(9))
    with pytest.raises(sc.errors.BadSchedule, match=r"where it stood at 0\.899 instead of 0\.9"):
        run.finish()
    advance(model, optimizer, run, batches(1))  # the hooks stayed on
    assert run.finish().masks.sparsity == pytest.approx(0.9, abs=0.005)


def test_a_start_that_fails_leaves_no_hook_and_no_zero():
    model, _ = zoo.make("linear")
    before, optimizer = copy.deepcopy(model.state_dict()), OPTIMIZERS["sgd"](model.parameters())
    at_once = sc.Constant(begin_step=0)
    for wrong, error in [
        (Gradual(sparsity=0.5, criterion="taylor", schedule=at_once), sc.errors.NeedsTask),
        (Gradual(sparsity=0.9, granularity="2:4", schedule=at_once), sc.errors.BadSparsity),
        (Gradual(schedule=at_once), sc.errors.BadSparsity),
        (Gradual(sparsity=0.5, overrides={"nope": 0.1}, schedule=at_once), sc.errors.UnknownName),
        (Gradual(sparsity=0.5, ignore=["nope"]), sc.errors.UnknownName),
        (
            Gradual(sparsity=0.2, schedule=sc.Linear(begin_step=0, end_step=9, initial_sparsity=0.5)),
            sc.errors.BadSchedule,
        ),
    ]:
        with pytest.raises(error):
            wrong.start(model, optimizer)
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_step_pre_hooks
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_n_of_m_arrives_and_holds():
    model, _ = zoo.make("linear")
    optimizer = OPTIMIZERS["adam"](model.parameters())
    run = METHODS["n_of_m"].start(model, optimizer)
    advance(model, optimizer, run, batches(12))
    pruned = run.finish()
    for name, mask in pruned.masks.items():
        assert (mask.view(mask.shape[0], -1, 4).sum(-1) == 2).all(), name


def test_cyclic_lets_weights_come_back():
    model, _ = zoo.make("linear")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    run = METHODS["cyclic"].start(model, optimizer)
    kept = []
    advance(model, optimizer, run, batches(12), each=lambda: kept.append(run.masks.kept))
    assert any(later > earlier for earlier, later in itertools.pairwise(kept))
    assert kept[-1] == round(0.25 * run.masks.total)


def test_two_runs_side_by_side():
    models = [zoo.make("linear", seed)[0] for seed in (1, 2)]
    optimizers = [OPTIMIZERS["adam"](m.parameters()) for m in models]
    methods = [METHODS["magnitude"], METHODS["movement"]]
    runs = [method.start(m, o) for method, m, o in zip(methods, models, optimizers, strict=True)]
    for batch in batches(12):
        (models[0](batch) - models[1](batch)).square().mean().backward()
        for optimizer, run in zip(optimizers, runs, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            run.step()
    assert [round(run.finish().masks.sparsity, 2) for run in runs] == [0.8, 0.7]


def test_frozen_layers_and_halves_train_along():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4).bfloat16())
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"]([p for p in model.parameters() if p.requires_grad])
    run = Gradual(
        sparsity=0.5, criterion=Movement(), schedule=sc.Linear(begin_step=0, end_step=4, frequency=1), scope="layer"
    ).start(model, optimizer)
    for batch in batches(4):
        model[2](model[1](model[0](batch)).bfloat16()).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.step()
    masks = run.finish().masks
    assert masks.sparsities() == {"0.weight": 0.5, "2.weight": 0.5}
    assert run.state_dict()["tracker"]["sums"]["2.weight"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
def test_movement_by_hand():
    """One weight pushed away from zero, one towards it: w=1, g=-2 gives +2; w=1, g=+3 gives -3."""
    model = nn.Linear(2, 1, bias=False)
    model.weight.data.fill_(1.0)
    tracker = Movement().track(model, {"weight": sc.LayerFacts()})
    model.weight.grad = torch.tensor([[-2.0, 3.0]])
    tracker.observe(model)
    tracker.observe(model)
    assert tracker.scores().values["weight"].tolist() == [[4.0, -6.0]]


def test_a_state_of_another_model_is_refused():
    run = METHODS["magnitude"].start(m := zoo.make("linear")[0], OPTIMIZERS["sgd"](m.parameters()))
    other = METHODS["magnitude"].start(m := zoo.make("twice")[0], OPTIMIZERS["sgd"](m.parameters()))
    with pytest.raises(sc.errors.WrongModel, match="other parameters"):
        run.load_state_dict(other.state_dict())
