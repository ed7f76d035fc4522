"""The energy model, by hand, and the budget in one-shot pruning."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.costs.energy import Energy
from secateur.energy.systolic import SystolicArray
from secateur.energy.uses import uses_of


def lenet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 10),
    )  # fmt: skip


X = torch.zeros(1, 1, 28, 28)


def test_a_convolution_by_hand():
    """3 -> 4 channels, 3x3 on 5x5 without padding: 9 output positions, so one pass of 12 rows; 27 taps at each position."""
    (use,) = uses_of(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 5, 5))
    assert (use.positions, use.taps, use.inputs, use.outputs, use.weights) == (9, 9 * 27, 75, 36, 108)
    array = SystolicArray()
    assert array.slopes(use) == (200 + 6 + 9 * (1 + 3), 200 + 6 + 9 * (1 + 3))
    assert array.of_inputs(use) == (243 * (1 * 6 + 4 * 1), 200 * 75, 200 * 36)


def test_weights_beyond_their_cache_are_read_again_for_every_pass():
    (use,) = uses_of(nn.Conv2d(16, 64, 3, padding=1), torch.zeros(1, 16, 8, 8))  # 9,216 weights, 64 positions: 6 passes
    array = SystolicArray()
    near, far = array.slopes(use)
    assert (near, far) == (200 + 36 + 256, 1200 + 36 + 256)
    assert array.of_weights(use) == 4096 * near + (9216 - 4096) * far
    assert array.of_weights(use, 100) == 100 * near


def test_padding_is_not_read():
    (use,) = uses_of(nn.Conv2d(1, 1, 3, padding=1), torch.zeros(1, 1, 3, 3))
    assert use.taps == 7 * 7  # along each axis 2 + 3 + 2 of 9 taps are on the image


def test_zeros_cost_nothing_and_energy_is_that_of_its_weights():
    model = lenet()
    fixed, prices = Energy().of_weights(model, X)
    (dense,) = Energy().measure([model], X)
    spent = sum(
        sum(each * min(many, model.get_parameter(n).numel()) for many, each in steps[:1]) for n, steps in prices.items()
    )
    assert dense > fixed + spent  # fc1 has more weights than the cache holds
    pruned = sc.prune(model, sparsity=0.9).model
    assert Energy().measure([pruned], X)[0] < 0.3 * dense


@pytest.mark.parametrize("granularity", ["unstructured", "row", "filter", "channel"])
def test_a_budget_is_met_and_used(granularity):
    model = lenet()
    pruned = sc.prune(model, budget="energy:40%", granularity=granularity, example_inputs=X)
    (dense,), (now,) = Energy().measure([model], X), Energy().measure([pruned.model], X)
    assert (0.38 if granularity != "filter" else 0.2) * dense < now <= 0.4 * dense
    assert any("energy were asked for" in note for note in pruned.report.notes)


def test_a_weight_budget_is_filled_to_the_last_weight():
    model = lenet()
    pruned = sc.prune(model, budget="energy:40%", example_inputs=X)
    (dense,), (now,) = Energy().measure([model], X), Energy().measure([pruned.model], X)
    cheapest = min(each for steps in Energy().of_weights(model, X)[1].values() for _, each in steps)
    assert now <= 0.4 * dense < now + cheapest + 1e-12


def test_what_is_ignored_is_paid_for():
    model = lenet()
    pruned = sc.prune(model, budget="energy:60%", example_inputs=X, ignore=["0", "3"])
    (dense,), (now,) = Energy().measure([model], X), Energy().measure([pruned.model], X)
    assert 0.59 * dense < now <= 0.6 * dense
    assert set(pruned.masks) == {"7.weight", "9.weight"}


def test_refusals():
    with pytest.raises(sc.errors.UnknownName, match="whole channels"):
        sc.prune(lenet(), budget="latency:50%", example_inputs=X)
    with pytest.raises(sc.errors.NeedsTask, match="example_inputs"):
        sc.prune(lenet(), budget="energy:50%")
    with pytest.raises(sc.errors.OverBudget, match="what has to stay"):
        sc.prune(lenet(), budget="energy:3%", example_inputs=X)
    with pytest.raises(sc.errors.BadSparsity, match="how much stays in every layer"):
        sc.prune(lenet(), budget="energy:60%", granularity="2:4", example_inputs=X)
    with pytest.raises(sc.errors.BadSparsity, match="at least one row"):
        SystolicArray(rows=0)
