"""Groups do not starve while the budget can be met without."""

import pytest
import torch
from torch import nn

import secateur as sc

X = torch.zeros(1, 3, 12, 12)


def net():
    """Three groups of 32; what makes and reads the first is tiny, so one ranking takes nearly all of it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 32), (32, 32), (32, 32), (32, 4))]
    with torch.no_grad():
        layers[0].weight.mul_(1e-3)
        layers[1].weight.mul_(1e-3)
        layers[2].weight.mul_(100)
        layers[3].weight.mul_(100)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3])


@pytest.mark.parametrize(
    ("options", "widths"),
    [({}, range(7, 8)), ({"min_kept": 2}, range(2, 7)), ({"min_kept": 12}, range(12, 33))],
    ids=["half", "two", "twelve"],
)
def test_half_of_the_share_stays_in_every_group_unless_said_otherwise(options, widths):
    pruned = sc.prune(net(), granularity="channel", budget="macs:40%", example_inputs=X, **options)
    assert pruned.model[0].out_channels in widths
    assert 0.38 < pruned.report.after.macs / pruned.report.before.macs <= 0.4


def test_a_budget_that_needs_less_gets_less():
    pruned = sc.prune(net(), granularity="channel", budget="macs:1%", example_inputs=X)
    assert pruned.report.after.macs <= 0.01 * pruned.report.before.macs
