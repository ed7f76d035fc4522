"""The knapsack of weights: exact against brute force, greedy within its gap."""

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.solvers.cheapest import keep_best

NUMBERS = st.integers(1, 30)
CLASSES = st.lists(
    st.tuples(st.lists(NUMBERS, min_size=1, max_size=4), NUMBERS, st.integers(0, 5)), min_size=1, max_size=4
)


def tables(classes):
    values = [torch.tensor(sorted(v, reverse=True), dtype=torch.float64) for v, _, _ in classes]
    costs = [c + d * torch.arange(len(v), dtype=torch.float64) for v, c, d in classes]
    return values, costs


def brute_force(values, costs, room):
    """The best of all counts."""
    best = 0.0
    for counts in product(*(range(len(v) + 1) for v in values)):
        spent = sum(float(c[:k].sum()) for c, k in zip(costs, counts, strict=True))
        if spent <= room:
            best = max(best, sum(float(v[:k].sum()) for v, k in zip(values, counts, strict=True)))
    return best


@settings(max_examples=150, deadline=None)
@given(CLASSES, st.integers(0, 200))
def test_exact_is_the_best_and_greedy_is_within_its_gap(classes, room):
    values, costs = tables(classes)
    best = brute_force(values, costs, room)
    exact, greedy = (keep_best(values, costs, float(room), exact=e) for e in (True, False))
    assert exact.value == best
    assert exact.cost <= room
    assert greedy.cost <= room
    assert best - greedy.gap - 1e-9 <= greedy.value <= best
    for choice in (exact, greedy):
        assert choice.value == sum(float(v[:k].sum()) for v, k in zip(values, choice.counts, strict=True))


def test_by_hand():
    """Greedy takes 10 for 5 (2 each) and cannot pay for 9 for 5 any more; the best is 9 + 9 for 10 ... room 9: 10 alone, or 9 + nothing."""
    values, costs = [torch.tensor([12.0]), torch.tensor([9.0, 9.0])], [torch.tensor([6.0]), torch.tensor([5.0, 5.0])]
    assert keep_best(values, costs, 10.0).value == 12.0
    assert keep_best(values, costs, 10.0, exact=True).counts == (0, 2)


def test_many_weights_are_solved_exactly_in_no_time():
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.rand(n, generator=generator).double().square().sort(descending=True).values for n in (500, 25_000, 5_000)
    ]
    costs = [torch.full((500,), 2792.0), torch.full((25_000,), 492.0), torch.full((5_000,), 210.0)]
    greedy, exact = (keep_best(values, costs, 3e6, exact=e) for e in (False, True))
    assert greedy.value <= exact.value <= greedy.value + greedy.gap
    assert greedy.gap < 1.0  # less than one weight
