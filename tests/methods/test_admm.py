"""ADMM: exact projections, the equations, stages, levels, channels, and resuming."""

import copy
from itertools import combinations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.alternating.duals import Splitting
from secateur.criteria.magnitude import Magnitude
from secateur.facts import LayerFacts
from secateur.names import allocation_of, granularity_of
from secateur.projections import OntoChannels, OntoPattern
from secateur.quantising import fitted_spacing, to_levels


def task(seed=0, n=96):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=g)
    return x, (x[:, :3].sum(1) > 0).long()


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))


def convnet():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )  # fmt: skip


def train(model, run, optimizer, steps, seed=0, penalty=True):
    x, y = task()
    x = x if not isinstance(model[0], nn.Conv2d) else x.repeat(1, 3).view(-1, 1, 6, 6)
    for k in range(steps):
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + k))[:32]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        (loss + run.penalty() if penalty else loss).backward()
        optimizer.step()
        run.step()


@pytest.mark.parametrize("text", ["unstructured", "2:4", "block:2x2", "filter", "input_channel", "shape", "row"])
def test_projection_is_the_nearest_point(text):
    """Against every other choice of as many units."""
    torch.manual_seed(0)
    weights = {"w": torch.randn(4, 4)}
    pattern = granularity_of(text)
    share = None if pattern.quota is not None else allocation_of("global", 0.5)
    onto = OntoPattern(granularity=pattern, facts={"w": LayerFacts()})
    mask = onto.masks(weights, share, None)["w"]
    ours = float((weights["w"] * ~mask).square().sum())
    for other in others_of(text):
        assert ours <= float((weights["w"] * ~other).square().sum()) + 1e-6


def others_of(text):
    """Every mask of the pattern that keeps half, for a 4 x 4 weight."""
    if text == "unstructured":
        yield from (
            torch.zeros(16, dtype=torch.bool).index_fill(0, torch.tensor(c), True).view(4, 4)
            for c in combinations(range(16), 8)
        )
    if text in ("filter", "input_channel", "shape"):
        for c in combinations(range(4), 2):
            mask = torch.zeros(4, 4, dtype=torch.bool).index_fill(0, torch.tensor(c), True)
            yield mask if text == "filter" else mask.t()
    if text == "block:2x2":
        for c in combinations(range(4), 2):
            blocks = torch.zeros(4, dtype=torch.bool).index_fill(0, torch.tensor(c), True).view(2, 2)
            yield blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)
    if text in ("2:4", "row"):
        rows = [
            torch.zeros(4, dtype=torch.bool).index_fill(0, torch.tensor(c), True) for c in combinations(range(4), 2)
        ]
        yield from (torch.stack([a, b, c, d]) for a in rows for b in rows for c in rows for d in rows)


def test_channels_are_ranked_by_what_makes_them_and_every_weight_counts_once():
    model = convnet()
    x = torch.randn(2, 1, 6, 6)
    onto = OntoChannels(model, sc.couple(model, x), x)
    values = {name: model.get_parameter(name).detach() for name in onto.names}
    key = next(k for k in (onto.channels.key(g) for g in onto.channels.groups) if k.startswith("0"))
    by_hand = (
        model[0].weight.flatten(1).square().sum(1)
        + model[0].bias.square()
        + model[1].weight.square()
        + model[1].bias.square()
    )
    torch.testing.assert_close(onto.energy(values, key).float(), by_hand.detach())
    assert "7.weight" not in onto.names  # it reads channels, it makes none
    masks = onto.masks(values, allocation_of("layer", 0.5, None, 1), None)
    assert masks["3.weight"].flatten(2).any(2).any(0).sum() == 4  # what reads them leaves as well
    assert onto.bound(masks)["3.weight"].flatten(1).any(1).sum() == 4


def test_the_equations():
    """One weight pair, by hand: W = (3, 1), keep one."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, 1.0]])
    split = Splitting(layer, ("weight",), rho=0.5)
    keep = sc.Masks({"weight": torch.tensor([[True, False]])})
    split.begin(keep)
    assert split.penalty().item() == pytest.approx(0.25 * 1.0)  # rho/2 |W - Z|^2, squared
    split.penalty().backward()
    assert layer.weight.grad.tolist() == [[0.0, 0.5]]  # rho (W - Z + U)
    layer.weight.data = torch.tensor([[3.0, 0.8]])
    residuals = split.update(keep)
    assert residuals["primal"] == pytest.approx(0.8 / 9.64**0.5)
    assert split.u["weight"].tolist() == [[0.0, pytest.approx(0.8)]]
    split.strengthen(2.0)
    assert split.rho == 1.0
    assert split.u["weight"].tolist() == [[0.0, pytest.approx(0.4)]]


def test_counts_are_exact_zeros_are_held_and_residuals_fall():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    run = sc.methods.ADMM(sparsity=0.75, rho=1e-2, growth=1.2, every=10, iterations=15).start(model, optimizer)
    train(model, run, optimizer, 150)
    assert run.retraining
    assert not optimizer.state  # the cut emptied it
    train(model, run, optimizer, 50, seed=1)
    pruned = run.finish()
    assert pruned.masks.kept == round(0.25 * 224)
    assert sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1) <= pruned.masks.kept
    history = run.history
    assert len(history) == 15
    assert history[-1]["primal"] < 0.5 * history[0]["primal"]
    assert history[-1]["rho"] == pytest.approx(1e-2 * 1.2**14)


def test_the_penalty_does_something_that_one_shot_does_not():
    """The cut costs less after ADMM than after as many ordinary steps."""
    rises = []
    for rho in (1e-2, 1e-12):
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        run = sc.methods.ADMM(sparsity=0.8, rho=rho, growth=1.2, every=10, iterations=20).start(model, optimizer)
        train(model, run, optimizer, 199)
        x, y = task()
        with torch.no_grad():
            before = float(nn.functional.cross_entropy(model(x), y))
            rises.append(float(nn.functional.cross_entropy(run.finish().model(x), y)) - before)
    assert rises[0] < 0.5 * rises[1]


def test_stages_only_shrink():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = sc.methods.ADMM(sparsity=0.9, stages=(0.5, 0.75), every=5, iterations=4, retrain=10).start(model, optimizer)
    kept = []
    for _ in range(9):
        train(model, run, optimizer, 10)
        kept.append(run.masks)
    pruned = run.finish()
    assert [row["sparsity"] for row in run.history][::4] == [0.5, 0.75, pytest.approx(1 - round(0.1 * 224) / 224)]
    assert pruned.masks.kept == 22
    half = torch.cat([m.flatten() for m in kept[2].values()])
    assert not bool((torch.cat([m.flatten() for m in pruned.masks.values()]) & ~half).any())


def test_levels_are_met_exactly_and_jointly():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = sc.methods.ADMM(sparsity=0.5, bits=3, rho=1e-2, every=5, iterations=10).start(model, optimizer)
    train(model, run, optimizer, 90)
    pruned = run.finish()
    for name in ("0.weight", "2.weight"):
        weights = model.get_parameter(name).detach()
        assert len(weights.unique()) <= 7
        assert not weights[~pruned.masks[name]].any()
    assert any("7 equally spaced levels" in note for note in pruned.report.notes)


def test_spacing_against_a_fine_grid():
    torch.manual_seed(0)
    weights = torch.randn(200)

    def error(q):
        return float((weights - to_levels(weights, 3, q)).square().sum())

    best = min(error(q) for q in torch.linspace(0.05, 1.5, 2000).tolist())
    assert error(fitted_spacing(weights, 3)) <= best * 1.001


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "2:4", "sparsity": None},
        {"bits": 4},
        {"stages": (0.3,)},
        {"distill": 0.5},
        {"granularity": "channel"},
    ],
)
def test_resumed_is_uninterrupted(options):
    method = sc.methods.ADMM(
        **({"sparsity": 0.5, "rho": 1e-2, "growth": 1.1, "every": 3, "iterations": 4, "retrain": 4} | options)
    )
    make = convnet if options.get("granularity") == "channel" else mlp
    inputs = {"example_inputs": torch.randn(2, 1, 6, 6)} if make is convnet else {}

    def begin():
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, optimizer, method.start(model, optimizer, **inputs)

    straight = begin()
    for stop in range(2, 40, 9):
        train(straight[0], straight[2], straight[1], 9, seed=stop)
    halfway = begin()
    train(halfway[0], halfway[2], halfway[1], 9, seed=2)
    states = copy.deepcopy([part.state_dict() for part in halfway])
    resumed = begin()
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    for stop in range(11, 40, 9):
        train(resumed[0], resumed[2], resumed[1], 9, seed=stop)
    one, other = straight[2].finish(), resumed[2].finish()
    assert one.masks == other.masks
    for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert straight[2].history == resumed[2].history


def test_channels_come_out_narrower_within_a_budget():
    model = convnet()
    x = torch.randn(2, 1, 6, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = sc.methods.ADMM(budget="macs:40%", granularity="channel", rho=1e-2, every=4, iterations=5).start(
        model, optimizer, example_inputs=x
    )
    train(model, run, optimizer, 30)
    pruned = run.finish()
    assert pruned.model[0].out_channels < 8
    assert pruned.report.after.macs <= 0.4 * pruned.report.before.macs
    torch.testing.assert_close(pruned.model.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_stopping_early_still_keeps_the_constraint_and_says_so():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sc.methods.ADMM(sparsity=0.9, every=100).start(model, optimizer)
    train(model, run, optimizer, 3)
    pruned = run.finish()
    assert pruned.masks.kept == 22
    assert any("before the cut" in note for note in pruned.report.notes)
    assert not model[0].weight[~pruned.masks["0.weight"]].any()


def test_a_global_constraint_shares_the_sparsity_out():
    model = mlp()
    model[2].weight.data.mul_(100)
    run = sc.methods.ADMM(sparsity=0.8, every=10).start(model, torch.optim.SGD(model.parameters(), lr=0.0))
    assert run.masks.sparsities()["2.weight"] == 0.0
    scores = Magnitude()(model, dict.fromkeys(run.masks))
    assert run.masks["0.weight"].sum() == 45 - 32
    assert set(scores.values) == set(run.masks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.5, "rho": 0}, "rho=0"),
        ({"sparsity": 0.5, "stages": (0.6,)}, "let them rise"),
        ({"sparsity": 0.5, "bits": 1}, "bits=1"),
        ({"sparsity": 0.5, "every": 0}, "every=0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(sc.errors.SecateurError, match=message):
        sc.methods.ADMM(**options)


def test_what_cannot_fit_is_refused_at_the_start():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(sc.errors.BadSchedule, match="end at step 300"):
        sc.methods.ADMM(sparsity=0.5, every=10).start(model, optimizer, total_steps=200)
    with pytest.raises(sc.errors.BadSparsity, match="needs granularity='channel'"):
        sc.methods.ADMM(budget="macs:50%").start(model, optimizer)
    other = sc.methods.ADMM(sparsity=0.5).start(model, optimizer)
    with pytest.raises(sc.errors.WrongModel, match="other parameters"):
        sc.methods.ADMM(sparsity=0.5, ignore=["0"]).start(model, optimizer).load_state_dict(other.state_dict())
