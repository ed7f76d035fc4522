"""Layer-wise ADMM against brute force, direct solves, and the method on a network."""

from itertools import combinations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.solvers.layer_admm import layer_admm


def problem(rows=1, features=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(features, 40, generator=g, dtype=torch.float64)
    x = torch.randn(features, features, generator=g, dtype=torch.float64) @ x
    return torch.randn(rows, features, generator=g, dtype=torch.float64), x @ x.t()


def largest(k):
    return lambda w: torch.zeros_like(w, dtype=torch.bool).scatter_(1, w.abs().topk(k, dim=1).indices, True)


def error_of(v, h, mask):
    """The least squares on a support, solved directly; relative."""
    w = torch.zeros_like(v)
    for row in range(len(v)):
        on = mask[row].nonzero().flatten()
        w[row, on] = torch.linalg.solve(h[on][:, on], (v[row] @ h)[on])
    return float(((w - v) @ h * (w - v)).sum() / (v @ h * v).sum())


@pytest.mark.parametrize("seed", range(5))
def test_refit_is_the_least_squares_and_the_support_is_near_the_best(seed):
    v, h = problem(seed=seed)
    found = layer_admm(v, h, largest(4), damping=0.0, refit=50)
    assert int(found.mask.sum()) == 4
    assert found.error == pytest.approx(error_of(v, h, found.mask), rel=1e-4, abs=1e-12)
    best = min(
        error_of(v, h, torch.zeros(1, 8, dtype=torch.bool).index_fill(1, torch.tensor(c), True))
        for c in combinations(range(8), 4)
    )
    magnitude = error_of(v, h, largest(4)(v))
    assert best - 1e-9 <= found.error <= max(3 * best, best + 0.5 * (magnitude - best) + 1e-9)


def test_conjugate_gradients_never_raise_the_error():
    v, h = problem(rows=6, features=30)
    errors = [layer_admm(v, h, largest(10), refit=k).error for k in (0, 1, 3, 10, 40)]
    assert errors == sorted(errors, reverse=True)


def test_inputs_that_never_come_are_harmless():
    v, h = problem(rows=2)
    h[3], h[:, 3] = 0, 0
    found = layer_admm(v, h, largest(4), damping=0.0)
    assert torch.isfinite(found.weights).all()


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(), nn.Linear(16, 4)
    )


@pytest.mark.parametrize(("granularity", "sparsity"), [("unstructured", 0.7), ("2:4", None), ("block:2x2", 0.5)])
def test_the_method_beats_magnitude_on_what_the_network_computes(granularity, sparsity):
    model, x = network(), torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]  # correlated inputs, as real ones are
    ignore = ["0"] if granularity != "unstructured" else []
    pruned = sc.methods.ALPS(sparsity=sparsity, granularity=granularity, ignore=ignore)(model, task=sc.Task([x]))
    options = {} if sparsity is None else {"sparsity": sparsity, "scope": "layer"}
    plain = sc.prune(model, granularity=granularity, ignore=ignore, **options)
    assert pruned.masks.kept == plain.masks.kept
    with torch.no_grad():
        ours, theirs = ((m(x) - model(x)).square().mean() for m in (pruned.model, plain.model))
    assert ours < 0.7 * theirs
    for name, mask in pruned.masks.items():
        assert not pruned.model.get_parameter(name)[~mask].any()
    assert set(pruned.report.settings["errors"]) == set(pruned.masks)


def test_refusals():
    with pytest.raises(sc.errors.NeedsTask):
        sc.methods.ALPS(sparsity=0.5)(network())
    with pytest.raises(sc.errors.NothingToPrune, match="no linear layer"):
        sc.methods.ALPS(sparsity=0.5)(
            nn.Sequential(nn.Conv2d(4, 4, 1, groups=4)), task=sc.Task([torch.zeros(1, 4, 2, 2)])
        )
    with pytest.raises(sc.errors.BadScores, match="rho=0"):
        sc.methods.ALPS(sparsity=0.5, rho=0)
