"""Batch-norm statistics by hand, and nothing else changed."""

import copy

import pytest
import torch
from torch import nn

import secateur as sc


def net():
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4, track_running_stats=False)
    )


def test_the_average_over_batches_by_hand():
    model, data = net(), [torch.randn(5, 3), torch.randn(9, 3) + 2]
    model[1].momentum = 0.3
    model[1].running_mean.fill_(99)
    assert sc.recalibrate_(model, [(x, "label") for x in data]) == 1
    hidden = [model[0](x).detach() for x in data]
    torch.testing.assert_close(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert model[1].momentum == 0.3


def test_modes_weights_and_random_state_stay():
    model = net()
    model[0].eval()
    modes, weights, state = (
        [m.training for m in model.modules()],
        copy.deepcopy(dict(model.named_parameters())),
        torch.get_rng_state(),
    )
    sc.recalibrate_(model, [torch.ones(4, 3)])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_or_broken_refresh_does_no_damage():
    model = net()
    before = copy.deepcopy(model.state_dict())
    used_up = (x for x in [])
    with pytest.raises(sc.errors.NeedsTask, match="batches and got none"):
        sc.recalibrate_(model, used_up)
    with pytest.raises(RuntimeError):
        sc.recalibrate_(model, [torch.randn(4, 3), torch.randn(4, 2)])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model[1].momentum == 0.1


def test_a_model_without_statistics_runs_nothing():
    def forbidden():
        yield pytest.fail("must not be read")

    assert sc.recalibrate_(nn.Linear(2, 2), forbidden()) == 0


def test_inputs_by_keyword_and_own_forwards():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, *, x):
            return self.norm(x)

    model, x = Keyword(), torch.randn(6, 2)
    sc.recalibrate_(model, [{"x": x}])
    torch.testing.assert_close(model.norm.running_mean, x.mean(0))
    sc.recalibrate_(model, [x + 1], forward=lambda m, batch: m(x=batch))
    torch.testing.assert_close(model.norm.running_mean, x.mean(0) + 1)
