"""Budgets of single weights: what zeros save, and layers that share it by their errors."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.allocations.by_error import ByError
from secateur.budget_of_errors import cost_of, widths_of
from secateur.costs.macs import Macs
from secateur.costs.params import Params
from secateur.errors import OverBudget, UnknownName
from secateur.units import Table, Units


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ONE = X[:1]


def test_what_weights_cost_by_hand():
    fixed, prices = Macs().of_weights(network(), ONE)
    assert fixed == 0
    assert prices == {
        "0.weight": ((float("inf"), 64.0),),  # places of 8 x 8
        "2.weight": ((float("inf"), 9.0),),
        "5.weight": ((float("inf"), 1.0),),
    }
    assert Macs().of_nonzeros(network(), ONE) == 3 * 9 * 16 * 64 + 16 * 9 * 16 * 9 + 1440


def test_products_of_attention_are_fixed():
    layer = nn.MultiheadAttention(8, 2, bias=False)
    x = torch.zeros(5, 1, 8)
    fixed, prices = Macs().of_weights(layer, (x, x, x))
    assert fixed == 2 * 5 * 5 * 8  # queries by keys, and by values
    assert {name: each for name, ((_, each),) in prices.items()} == {"in_proj_weight": 5.0, "out_proj.weight": 5.0}


@pytest.mark.parametrize("budget", ["macs:30%", "params:30%", "energy:60%", "params:900"])
def test_layer_obs_keeps_a_budget(budget):
    net, task = network(), sc.Task([X[:6], X[6:]])
    pruned = sc.prune(net, "layer_obs", budget=budget, task=task, example_inputs=ONE)
    cost = {"macs": Macs(), "params": Params()}.get(budget.partition(":")[0])
    if cost:
        spent, dense = cost.of_nonzeros(pruned.model, ONE), cost.of_nonzeros(net, ONE)
        limit = 900 if "900" in budget else 0.3 * dense
        assert 0.98 * limit <= spent <= limit
    assert all(mask.any() for mask in pruned.masks.values())
    assert any(note.startswith("Budget: at most") for note in pruned.report.notes)


def test_where_multiplications_are_dear_fewer_weights_stay():
    task = sc.Task([X[:6], X[6:]])
    macs, params = (
        sc.prune(network(), "layer_obs", budget=f"{cost}:30%", task=task, example_inputs=ONE).masks
        for cost in ("macs", "params")
    )
    assert macs["0.weight"].sum() < params["0.weight"].sum()
    assert macs["5.weight"].sum() > params["5.weight"].sum()


def test_block_fisher_keeps_a_budget():
    task = sc.Task([(X, torch.arange(12) % 10)], loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
    net = network()
    pruned = sc.prune(net, "block_fisher", budget="macs:40%", task=task, example_inputs=ONE)
    assert (
        0.38 * Macs().of_nonzeros(net, ONE)
        < Macs().of_nonzeros(pruned.model, ONE)
        <= 0.4 * Macs().of_nonzeros(net, ONE)
    )


def test_who_means_channels_is_told_so():
    with pytest.raises(UnknownName, match=r"granularity='channel'.*layer_obs"):
        sc.prune(network(), "magnitude", budget="macs:50%", example_inputs=ONE)
    with pytest.raises(UnknownName, match="keeps no budget"):
        sc.prune(network(), "obs", budget="params:50%", task=sc.Task([X]), example_inputs=ONE)
    with pytest.raises(UnknownName, match="keeps no budget in the engine's time"):
        sc.prune(
            network(), "block_fisher", budget="latency:50%", runtime="secateur", task=sc.Task([X]), example_inputs=ONE
        )


@pytest.mark.parametrize("sparsity", [0.9, 0.96, 0.985])
def test_no_layer_starves_at_high_sparsity(sparsity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 30), nn.ReLU(), nn.Linear(30, 4))
    x = torch.randn(400, 40)
    masks = sc.prune(net, "layer_obs", sparsity=sparsity, task=sc.Task(list(x.split(100)))).masks
    assert masks.sparsity == pytest.approx(sparsity, abs=2e-3)
    shares = [float(mask.float().mean()) for mask in masks.values()]
    assert min(shares) > 0.3 * (1 - sparsity)


def test_errors_decide_what_a_limit_buys():
    units = Units({name: Table.of(torch.rand(100)) for name in "ab"})
    flat, steep = [(0.5, 1.0), (0.9, 2.0)], [(0.5, 10.0), (0.9, 100.0)]
    prices = tuple((name, ((float("inf"), 1.0),)) for name in "ab")
    counts = ByError(curves=(("a", flat), ("b", steep)), prices=prices, limit=100.0)(units)
    assert counts["a"] + counts["b"] == 100
    assert counts["a"] < counts["b"]
    dear = (prices[0], ("b", ((float("inf"), 3.0),)))
    found = ByError(curves=(("a", flat), ("b", steep)), prices=dear, limit=100.0)(units)
    assert found["a"] + 3 * found["b"] in range(98, 101)
    with pytest.raises(OverBudget, match="cannot be met"):
        ByError(curves=(("a", flat), ("b", steep)), prices=dear, limit=3.0)(units)


def test_steps_of_prices():
    steps = ((10, 1.0), (float("inf"), 3.0))
    assert [cost_of(steps, kept) for kept in (0, 10, 11)] == [0, 10, 13]
    curve = [(0.5, 1.0)]
    found = widths_of({"a": curve}, {"a": 20}, {"a": lambda kept: cost_of(steps, kept)}, 17.0)
    assert found == {"a": 12}
