"""Groups do not starve while the budget can be met without."""

import torch
from torch import nn

import secateur as sc

X = torch.zeros(1, 3, 12, 12)


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 3)
    )
    with torch.no_grad():
        model[0].weight.mul_(1e-3)  # one ranking would take nearly all of these
    return model


def widths(**options):
    pruned = sc.prune(net(), granularity="channel", example_inputs=X, **options)
    assert pruned.report.after.macs <= float(options["budget"][5:-1]) / 100 * pruned.report.before.macs
    return pruned.model[0].out_channels, pruned.model[2].out_channels


def test_half_of_the_share_stays_in_every_group():
    assert widths(budget="macs:50%")[0] == 8


def test_a_given_minimum_has_the_last_word():
    assert widths(budget="macs:50%", min_kept=12)[0] == 12


def test_a_budget_that_needs_less_gets_less():
    assert min(widths(budget="macs:2%")) <= 2
