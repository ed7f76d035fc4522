"""Training under energy budgets: single weights and channels; the budget holds exactly, resumed is uninterrupted."""

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.costs.energy import Energy
from secateur.energy.primal_dual import PrimalDual
from secateur.energy.systolic import SystolicArray
from secateur.pricing import Dimension, Part, Pricing

X = torch.zeros(1, 1, 12, 12)


def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 3),
    )  # fmt: skip


def train(model, run, optimizer, steps, seed=0):
    for k in range(steps):
        g = torch.Generator().manual_seed(100 * seed + k)
        y = torch.randint(0, 3, (16,), generator=g)
        x = torch.randn(16, 1, 12, 12, generator=g) + y.view(-1, 1, 1, 1)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + run.penalty()).backward()
        optimizer.step()
        run.step()


def begin(method):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    return model, optimizer, method.start(model, optimizer, example_inputs=X)


METHODS = [
    sc.methods.EnergyConstrained(budget="energy:40%", every=3, end_step=20),
    sc.methods.EnergyConstrained(budget="energy:40%", every=3, end_step=20, exact=True, distill=0.5),
    sc.methods.EnergyConstrained(budget="energy:40%", every=3, end_step=20, metric="fisher"),
    sc.methods.ECC(budget="energy:40%", every=2, end_step=20),
    sc.methods.ECC(budget="macs:40%", every=2, end_step=20, distill=0.5, min_kept=2),
]


@pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{type(m).__name__}-{m.budget}-{m.distill}-{getattr(m, 'metric', '')}"
)
def test_the_budget_holds_and_resumed_is_uninterrupted(method):
    (dense,) = Energy().measure([net()], X)
    straight = begin(method)
    train(*[straight[k] for k in (0, 2, 1)], 10, seed=1)
    train(*[straight[k] for k in (0, 2, 1)], 20, seed=2)
    halfway = begin(method)
    train(*[halfway[k] for k in (0, 2, 1)], 10, seed=1)
    states = copy.deepcopy([part.state_dict() for part in halfway])
    resumed = begin(method)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    train(*[resumed[k] for k in (0, 2, 1)], 20, seed=2)
    one, other = straight[2].finish(), resumed[2].finish()
    assert one.masks == other.masks
    for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    if method.budget.startswith("energy"):
        assert Energy().measure([one.model], X)[0] <= 0.4 * dense
    else:
        assert one.report.after.macs <= 0.4 * one.report.before.macs
    assert any("were asked for" in note for note in one.report.notes)


def test_the_budget_falls_exponentially_and_weights_may_come_back_until_it_is_reached():
    model, optimizer, run = begin(sc.methods.EnergyConstrained(budget="energy:25%", every=5, end_step=20))
    limits = [run.limit / run.spending.dense]
    seen = []
    for k in range(4):
        train(model, run, optimizer, 5, seed=k)
        limits.append(run.limit / run.spending.dense)
        seen.append(run.masks)
    assert limits == pytest.approx([1, 0.25**0.25, 0.5, 0.25**0.75, 0.25])
    zeros = {name: p.detach().clone() == 0 for name, p in model.named_parameters() if p.dim() > 1}
    train(model, run, optimizer, 10, seed=9)
    for name, zero in zeros.items():
        assert not model.get_parameter(name)[zero].any()  # held, under momentum and weight decay
    assert seen[-1].kept < seen[0].kept


def test_other_hardware_is_another_budget():
    small = Energy(array=SystolicArray(dram=20.0))
    method = sc.methods.EnergyConstrained(budget="energy:50%", cost=small, end_step=0)
    model, _, run = begin(method)
    pruned = run.finish()
    assert small.measure([pruned.model], X)[0] <= 0.5 * small.measure([net()], X)[0]
    assert pruned.model is model


def test_early_ends_and_refusals():
    model, optimizer, run = begin(sc.methods.EnergyConstrained(budget="energy:50%", end_step=100))
    train(model, run, optimizer, 2)
    pruned = run.finish()
    assert any("before end_step=100" in note for note in pruned.report.notes)
    assert Energy().measure([pruned.model], X)[0] <= 0.5 * Energy().measure([net()], X)[0]
    with pytest.raises(sc.errors.UnknownName, match="how much the loss feels"):
        sc.methods.EnergyConstrained(budget="energy:50%", metric="taxi")
    for kind in (sc.methods.EnergyConstrained, sc.methods.ECC):
        with pytest.raises(sc.errors.BadSchedule):
            kind(budget="energy:50%").start(model, optimizer, example_inputs=X)
        with pytest.raises(sc.errors.BadSchedule):
            kind(budget="energy:50%", every=0)
    with pytest.raises(sc.errors.OverBudget):
        begin(sc.methods.EnergyConstrained(budget="energy:1%", end_step=5))


def test_primal_dual_takes_what_is_dear_and_spares_what_resists():
    """Two groups of equal price; the units of one are all alike, of the other one is large and the rest are nearly zero."""
    pricing = Pricing(
        parts=(Part(1.0, (("a", 0),)), Part(1.0, (("b", 0),))),
        dimensions=(Dimension(("a", 0), 10, (("a", 1),)), Dimension(("b", 0), 10, (("b", 1),))),
        units=(("a", 10), ("b", 10)),
    )
    search = PrimalDual(pricing, 1.0, rho=1.0, rate=0.05, pull=1.0, least=1)
    energies = {"a": torch.ones(10).double(), "b": torch.tensor([1.0] + [1e-4] * 9).double()}
    alive = {name: torch.ones(10, dtype=torch.bool) for name in energies}
    for _ in range(60):
        counts = {name: int(a.sum()) for name, a in alive.items()}
        if search.excess(counts) <= 0:
            break
        search.step(counts)
        stay = search.survivors({name: e * alive[name] for name, e in energies.items()})
        alive = {name: alive[name] & stay[name] for name in alive}
    counts = {name: int(a.sum()) for name, a in alive.items()}
    assert search.excess(counts) <= 0
    assert counts["b"] < counts["a"]
    assert search.y["a"] > 0
    assert search.z > 0


def test_the_fisher_metric_removes_what_the_loss_does_not_feel():
    """Of two large weights, the one whose input is always zero leaves first; in the Euclidean metric the smaller one does."""
    kept = []
    for metric in ("euclid", "fisher"):
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.data = torch.tensor([[2.0, 1.0]])
        model = nn.Sequential(layer)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        method = sc.methods.EnergyConstrained(budget="energy:80%", end_step=3, metric=metric)
        run = method.start(model, optimizer, example_inputs=torch.zeros(1, 2))
        for _ in range(3):
            optimizer.zero_grad()
            (model(torch.tensor([[0.0, 1.0]])) - 5).square().sum().backward()
            optimizer.step()
            run.step()
        kept.append(run.finish().masks["0.weight"].tolist())
    assert kept == [[[True, False]], [[False, True]]]
