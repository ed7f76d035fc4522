"""Lottery tickets: geometric rounds, nested masks, survivors rewound exactly."""

import copy

import pytest
import torch

import secateur as sc
import zoo
from secateur.methods.iterative import Iterative


def trainer(x, steps=3):
    def train(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            zoo.loss_of(model, x).backward()
            optimizer.step()

    return train


def test_rounds_by_hand_nested_and_exact():
    """192 weights, 3 rounds to 0.875: half of what is left each time."""
    model, x = zoo.make("linear")
    before, seen = copy.deepcopy(model.state_dict()), []
    pruned = Iterative(sparsity=0.875, rounds=3)(
        model, trainer(x), rewind_to=before, on_round=lambda n, m: seen.append((n, m))
    )
    assert [(n, m.kept) for n, m in seen] == [(1, 96), (2, 48), (3, 24)]
    assert seen[2][1] == (seen[2][1] & seen[1][1] & seen[0][1]) == pruned.masks
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert sc.Masks.of_zeros(pruned.model, pruned.masks) == pruned.masks


def test_survivors_go_back_to_where_they_started():
    model, _ = zoo.make("linear")
    start = copy.deepcopy(model.state_dict())
    for p in model.parameters():
        p.data.add_(torch.randn_like(p))
    pruned = Iterative(sparsity=0.5, rounds=2)(model, lambda m: None, rewind_to=start)
    for name, p in pruned.model.named_parameters():
        kept = pruned.masks.get(name, torch.ones_like(p, dtype=torch.bool))
        assert torch.equal(p.detach(), start[name] * kept)


def test_fine_tuning_keeps_values_and_rewinding_needs_a_target():
    model, x = zoo.make("linear")
    with pytest.raises(sc.errors.NeedsTask, match="rewind_to="):
        Iterative(sparsity=0.5)(model, trainer(x))
    with pytest.raises(sc.errors.BadSchedule):
        Iterative(sparsity=0.5, rounds=0)
    pruned = Iterative(sparsity=0.5, rounds=2)(model, lambda m: None, rewind=False)
    name = "0.weight"
    assert torch.equal(
        pruned.model.get_parameter(name).detach(), model.get_parameter(name).detach() * pruned.masks[name]
    )
