"""What may stay, in a user's words: one of a sparsity and a budget, read into objects."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.allocations.global_ import Global
from secateur.allocations.uniform import Uniform
from secateur.budgets import Budget
from secateur.costs.macs import Macs
from secateur.errors import BadSparsity, UnknownName
from secateur.limits import limit_of, share_of


def test_a_sparsity_is_an_allocation():
    assert share_of(0.5, None, "global", 2) == Global(sparsity=0.5, min_kept=2)
    assert share_of(0.25, None, "layer", 0) == Uniform(sparsity=0.25)


def test_a_budget_is_a_limit():
    found = share_of(None, "macs:25%", "global", 2)
    assert (found.budget, found.cost, found.family, found.min_kept) == (Budget("macs", 0.25, True), Macs(), None, 2)
    assert limit_of("params:1k", "layer").family(sparsity=1.0) == Uniform(sparsity=1 - 1e-9, min_kept=1)


def test_what_is_not_understood_is_refused():
    for sparsity, budget, given in [(0.5, "macs:50%", "both were given"), (None, None, "none was given")]:
        with pytest.raises(BadSparsity, match=f"pass one of sparsity=.* and budget=.*; {given}"):
            share_of(sparsity, budget, "global", 1)
    with pytest.raises(UnknownName, match="none of the costs"):
        limit_of("money:50%")
    with pytest.raises(UnknownName, match="is none of erk"):
        limit_of("macs:50%", "nowhere")


def test_a_budget_through_the_front_door_by_hand():
    """Linear 4 -> 10 -> 2 costs 60 multiply-accumulates and 6 for each hidden unit: 5 of them make 30."""
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    for scope in ("global", "layer"):
        pruned = sc.prune(model, budget="macs:50%", granularity="channel", scope=scope, example_inputs=torch.ones(1, 4))
        assert pruned.model[0].out_features == 5
