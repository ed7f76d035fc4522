"""What cannot work is refused when a run starts, not at the first mask update; a run cannot be copied without its hooks."""

import copy
import pickle

import pytest
import torch
from torch import nn

import secateur as sc

LATE = sc.PolynomialDecay(begin_step=10, end_step=20)


def fresh():
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 3))
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"scope": "globl"}, sc.errors.UnknownName),
        ({"overrides": {"zz": 0.5}}, sc.errors.UnknownName),
        ({"overrides": {"0": 5.0}}, sc.errors.BadSparsity),
        ({"min_kept": 10_000}, sc.errors.BadSparsity),
        ({"criterion": "taylor"}, sc.errors.NeedsTask),
        ({"granularity": "block:7x7"}, sc.errors.BadPattern),
    ],
)
def test_impossible_settings_are_refused_at_the_start(wrong, error):
    net, optimizer = fresh()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error):
        sc.methods.Gradual(sparsity=0.8, schedule=LATE, **wrong).start(net, optimizer)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_an_override_is_quoted_as_it_was_written():
    net, optimizer = fresh()
    with pytest.raises(sc.errors.BadSparsity, match=r"5\.0"):
        sc.methods.Gradual(sparsity=0.8, schedule=LATE, overrides={"0": 5.0}).start(net, optimizer)


@pytest.mark.parametrize("attempt", [copy.deepcopy, pickle.dumps])
def test_a_run_is_not_copied_without_its_hooks(attempt):
    net, optimizer = fresh()
    run = sc.methods.Gradual(sparsity=0.8, schedule=LATE).start(net, optimizer)
    with pytest.raises(TypeError, match="state_dict"):
        attempt(run)
    run.release()
