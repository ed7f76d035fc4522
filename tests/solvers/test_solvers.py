"""Least squares against torch.linalg.lstsq; greedy removal against brute force."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.solvers.least_squares import Moments, correction, refit, refit_costs, solve_right
from secateur.solvers.unit_removal import removal_costs


def rise(weight, x, gone):
    """Brute force: what is left of ``|| W x - W' x' ||^2 / n`` with the best W' on the other features."""
    kept = [k for k in range(len(x)) if k not in gone]
    target = weight @ x
    fitted = torch.linalg.lstsq(x[kept].t(), target.t()).solution.t()
    return float((target - fitted @ x[kept]).square().sum() / x.shape[1])


@settings(max_examples=20)
@given(seed=st.integers(0, 999), kept=st.integers(1, 6))
def test_refit_is_least_squares(seed, kept):
    generator = torch.Generator().manual_seed(seed)
    weight, x = (torch.randn(*shape, generator=generator).double() for shape in ((3, 7), (7, 40)))
    now = x[:kept] + 0.1 * torch.randn(kept, 40, generator=generator)
    found = refit(weight, x @ now.t(), now @ now.t(), damping=0.0)
    expected = torch.linalg.lstsq(now.t(), (weight @ x).t()).solution.t()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_costs_of_a_refit_against_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    weight, x = (torch.randn(*shape, generator=generator).double() for shape in ((3, 7), (7, 40)))
    removed = torch.randperm(7, generator=generator)[:6]
    left = torch.tensor([rise(weight, x, set(removed[: k + 1].tolist())) for k in range(6)]) * 40
    whole = float((weight @ x).square().sum())
    expected = (left.diff(prepend=torch.zeros(1)) / whole).cummax(0).values
    torch.testing.assert_close(refit_costs(weight.t(), x @ x.t(), removed), expected.double(), rtol=1e-4, atol=1e-7)


def test_a_like_costs_nothing_to_refit():
    products = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    costs = refit_costs(torch.ones(3, 2), products, torch.tensor([2, 1]))
    assert costs[0] < 1e-7 < costs[1]


@settings(max_examples=20)
@given(seed=st.integers(0, 999), bias=st.booleans())
def test_a_correction_is_weighted_least_squares(seed, bias):
    generator = torch.Generator().manual_seed(seed)
    x, missing = (torch.randn(*shape, generator=generator).double() for shape in ((4, 40), (3, 40)))
    x += 2
    omega = torch.rand(40, generator=generator).double() + 0.1
    moments = Moments.of(x[:, :15], missing[:, :15], omega[:15]) + Moments.of(x[:, 15:], missing[:, 15:], omega[15:])
    made = moments.solved(0.0, bias=bias)
    columns = torch.cat([x, torch.ones(1, 40).double()]) if bias else x
    root = omega.sqrt()
    expected = torch.linalg.lstsq((columns * root).t(), (missing * root).t()).solution.t()
    torch.testing.assert_close(made.weight, expected[:, :4], rtol=1e-6, atol=1e-8)
    if bias:
        torch.testing.assert_close(made.bias, expected[:, 4], rtol=1e-6, atol=1e-8)
    left = ((missing - made.weight @ x - made.bias[:, None]).square() * omega).sum()
    assert abs(moments.gain(made) - float((missing.square() * omega).sum() - left)) < 1e-8


def test_halves_that_disagree_give_no_correction():
    x, missing = torch.randn(3, 200).double(), torch.randn(2, 3).double()
    one, other = (Moments.of(x, sign * missing @ x, torch.ones(200).double()) for sign in (1, -1))
    assert correction([one, other], damping=1e-4, bias=True) is None
    made = correction([one, one], damping=1e-8, bias=False)
    assert made is not None
    torch.testing.assert_close(made.weight, missing, rtol=1e-5, atol=1e-5)


def test_features_that_never_fire():
    gram = torch.diag(torch.tensor([2.0, 0.0]))
    found = solve_right(torch.tensor([[2.0, 0.0]]), gram, damping=0.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]).double(), rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), width=st.integers(1, 3))
def test_the_first_removal_is_the_best_one(seed, width):
    generator = torch.Generator().manual_seed(seed)
    units = 4
    x = torch.randn(units * width, 60, generator=generator).double()
    weight = torch.randn(5, units * width, generator=generator).double()
    costs = removal_costs(weight, x @ x.t() / 60, units, damping=0.0)
    alone = [rise(weight, x, range(u * width, (u + 1) * width)) for u in range(units)]
    first = int(costs.argmin())
    assert first == min(range(units), key=alone.__getitem__)
    assert abs(float(costs[first]) - alone[first]) < 1e-8 * max(alone)


@settings(max_examples=15)
@given(seed=st.integers(0, 999))
def test_costs_add_up_to_the_joint_rise(seed):
    """As long as no step is cheaper than one before it, the sum of the first k costs is the rise of removing all k."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 80, generator=generator).double()
    weight = torch.randn(4, 5, generator=generator).double()
    costs = removal_costs(weight, x @ x.t() / 80, 5, damping=0.0)
    order = costs.argsort(stable=True).tolist()
    sums = costs[order].cumsum(0)
    for k in (1, 2):
        joint = rise(weight, x, order[:k])
        assert joint <= float(sums[k - 1]) * (1 + 1e-6) + 1e-9
    pairs = min(rise(weight, x, pair) for pair in itertools.combinations(range(5), 2))
    assert float(sums[1]) <= 3 * pairs + 1e-9  # greedy, and not far from the best pair


@settings(max_examples=20)
@given(seed=st.integers(0, 999), width=st.integers(1, 3))
def test_greedy_is_one_best_removal_after_the_other(seed, width):
    """The slow way: among all units still there, the one whose absence is least bad, each time by a new least-squares fit."""
    generator = torch.Generator().manual_seed(seed)
    units = 5
    x = torch.randn(units * width, 60, generator=generator).double()
    weight = torch.randn(3, units * width, generator=generator).double()
    costs = removal_costs(weight, x @ x.t() / 60, units, damping=0.0)
    gone: list[int] = []
    for unit in costs.argsort().tolist()[:-1]:
        whole = {
            u: rise(weight, x, [u_ * width + k for u_ in (*gone, u) for k in range(width)])
            for u in range(units)
            if u not in gone
        }
        assert whole[unit] <= min(whole.values()) * (1 + 1e-6)
        gone.append(unit)


def test_scale():
    x, weight = torch.randn(6, 50).double(), torch.randn(3, 6).double()
    one = removal_costs(weight, x @ x.t(), 6)
    torch.testing.assert_close(removal_costs(2 * weight, x @ x.t(), 6), 4 * one)
