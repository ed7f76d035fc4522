"""Damping that is chosen by batches which the fit did not see."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NeedsTask, UnknownName
from secateur.layerwise.holdout import damping_of, held_out_damping
from secateur.layerwise.moments import Moments

WIDTH = 96


def batches(count: int, seed: int, *, places: int = 30) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    return [torch.randn(places, WIDTH, generator=generator) @ mixing for _ in range(count)]


def error(pruned: nn.Module, dense: nn.Module) -> float:
    x = torch.cat(batches(40, seed=9))
    with torch.no_grad():
        return float((pruned(x) - dense(x)).square().mean() / dense(x).var())


@pytest.mark.parametrize("how", [{}, {"granularity": "2:4", "sparsity": None}, {"targets": "dense"}], ids=str)
def test_with_few_samples_it_does_better_on_new_data(how):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 16))
    task = sc.Task(batches(6, seed=1))
    few = {"sparsity": 0.5, "scope": "layer", "task": task} | how
    if few["sparsity"] is None:
        del few["sparsity"], few["scope"]
    little, chosen = (sc.prune(dense, "layer_obs", damping=d, **few) for d in (1e-6, "held_out"))
    assert error(chosen.model, dense) < error(little.model, dense)
    assert torch.equal(chosen.masks.sparsity * torch.ones(1), little.masks.sparsity * torch.ones(1))


def test_with_many_samples_there_is_little_damping():
    torch.manual_seed(0)
    rows, many = torch.randn(1, 8, WIDTH), torch.cat(batches(400, seed=2))
    half = len(many) // 2
    hessians = tuple(part.T @ part / half for part in (many[:half], many[half:]))
    assert held_out_damping(rows, [hessians], 0.5) <= 0.01


@pytest.mark.parametrize("centred", [False, True])
def test_halves_are_those_of_the_batches(centred):
    all_ = [b.double().T[None] + 1 for b in batches(5, seed=3)]
    found = Moments("w", split=True)
    for place, x in enumerate(all_):
        found.add(x, odd=place % 2 == 1)
    for half, part in zip(found.halves(0, centred=centred), (all_[::2], all_[1::2]), strict=True):
        x = torch.cat(part, 2)[0]
        mean = x.mean(1, keepdim=True) if centred else 0
        torch.testing.assert_close(half, (x - mean) @ (x - mean).T / x.shape[1])


def test_scope_global_uses_it_too():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 8))
    task = sc.Task([(x, torch.zeros(len(x), dtype=torch.long)) for x in batches(4, seed=1)])
    pruned = sc.prune(dense, "layer_obs", sparsity=0.5, scope="global", damping="held_out", task=task)
    assert pruned.masks.sparsity == pytest.approx(0.5, abs=1e-3)
    assert "damping held_out" in pruned.report.method


def test_a_layer_that_ran_on_one_half_only_gets_the_usual_damping():
    found = Moments("w", split=True)
    found.add(batches(1, seed=3)[0].T[None])
    assert damping_of("held_out", torch.randn(1, 3, WIDTH), found, lambda: 0.5, centred=False) == 0.01


def test_refusals():
    dense = nn.Sequential(nn.Linear(WIDTH, 8))
    with pytest.raises(NeedsTask, match="two batches or more"):
        sc.prune(dense, "layer_obs", sparsity=0.5, damping="held_out", task=sc.Task(batches(1, seed=1)))
    with pytest.raises(UnknownName, match="'held_out'"):
        sc.prune(dense, "layer_obs", sparsity=0.5, damping="auto", task=sc.Task(batches(2, seed=1)))
