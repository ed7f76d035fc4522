"""Groups do not starve while the budget can be met without."""

import pytest
import torch
from torch import nn

import secateur as sc

X = torch.zeros(1, 3, 12, 12)


def net():
    """Three groups of 32; what makes and reads the first is tiny, so one ranking takes nearly all of it.

    At 40 % all alike would have 0.62 * 32: with f the fraction left, 864 f + 2 * 9216 f^2 + 1152 f = 0.4 * 20448.
    """
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
    [({}, range(10, 12)), ({"min_kept": 2}, range(2, 7)), ({"min_kept": 12}, range(12, 33))],
    ids=["half", "two", "twelve"],
)
def test_half_of_the_width_of_all_alike_stays_in_every_group_unless_said_otherwise(options, widths):
    pruned = sc.prune(net(), granularity="channel", budget="macs:40%", example_inputs=X, **options)
    assert pruned.model[0].out_channels in widths
    assert 0.38 < pruned.report.after.macs / pruned.report.before.macs <= 0.4


def test_steps_add_up_to_what_one_step_spares():
    """Four steps that each spare half would leave a sixteenth."""
    method = sc.methods.Stepwise(budget="macs:40%", steps=4)
    narrowed = method(net(), lambda model, step: None, example_inputs=X)
    assert narrowed.model[0].out_channels in range(10, 16)  # rounded up at every step
    assert 0.38 < narrowed.report.after.macs / narrowed.report.before.macs <= 0.4


def test_a_budget_that_needs_less_gets_less():
    pruned = sc.prune(net(), granularity="channel", budget="macs:1%", example_inputs=X)
    assert pruned.report.after.macs <= 0.01 * pruned.report.before.macs
