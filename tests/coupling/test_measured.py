"""Sizes read off tensors: they follow as sizes, and hold what they count when they become numbers."""

import math

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.coupling.measured import Measured
from secateur.coupling.traced import Count, Traced, counted, value_of


def measured(value, calls):
    return Measured(value, ("size", "n"), (lambda: calls.append(1),))


class TestArithmetic:
    def test_sizes_stay_sizes(self):
        calls = []
        four = measured(4, calls)
        for value in (four * 2, 2 * four, four + 1, four - 1, 8 - four, four // 2, 8 // four, -four, four * four):
            assert isinstance(value, Measured)
        assert calls == []

    def test_numbers_are_noticed(self):
        for compute in (math.sqrt, float, lambda n: n**-0.5, lambda n: 1 / n, lambda n: n / 2):
            calls = []
            compute(measured(4, calls))
            assert calls

    def test_attributes_take_over(self):
        heads = Traced(2, ("attention", "heads"))
        for value in (measured(8, []) // heads, heads * measured(8, [])):
            assert isinstance(value, Traced)

    def test_counts_in_expressions(self):
        lines = torch.tensor([[1], [2], [3], [4]])
        gone = torch.tensor([False, True, True, False, False])
        difference = Traced(3, ("", "kept")).__rsub__(Measured(4, Count(lines), ()))
        expression = counted(difference.expression, gone)
        assert value_of(expression, {("", "kept"): 1}, {("", "kept"): 3}) == 2 - 1


class Correlation(nn.Module):
    """Products of features, divided by the root of how many there are (optical flow)."""

    def __init__(self, root):
        super().__init__()
        self.features, self.root = nn.Conv2d(3, 8, 3), root

    def forward(self, x):
        a, b = self.features(x).flatten(2), self.features(x + 1).flatten(2)
        return a.transpose(1, 2) @ b / self.root(a)


@pytest.mark.parametrize(
    "root",
    [
        lambda t: t.shape[1] ** 0.5,
        lambda t: math.sqrt(t.size(1)),
        lambda t: torch.sqrt(torch.tensor(t.shape[1])),
        lambda t: t.size(dim=1),
    ],
)
def test_a_scale_by_a_counted_size_holds(root):
    coupling = sc.couple(Correlation(root), torch.randn(1, 3, 6, 6))
    assert coupling.groups() == ()
    assert "is counted, and the number is calculated with" in coupling.explain("features.weight")


def test_a_scale_by_something_else_does_not():
    (group,) = sc.couple(Correlation(lambda t: t.shape[2]), torch.randn(1, 3, 6, 6)).groups()
    assert group.units == 8


class Divided(nn.Module):
    """The rest of a split is what is left of the width: ``width - hidden``."""

    def __init__(self):
        super().__init__()
        self.hidden = 4
        self.first, self.a, self.b = nn.Linear(3, 10), nn.Linear(4, 5), nn.Linear(6, 5)

    def forward(self, x):
        x = self.first(x)
        hidden, rest = torch.split(x, [self.hidden, x.shape[1] - self.hidden], 1)
        return self.a(hidden) + self.b(rest)


def test_a_difference_to_a_counted_size_follows():
    net, x = Divided(), torch.randn(2, 3)
    pruned = sc.prune(net, "random", sparsity=0.5, scope="layer", granularity="channel", example_inputs=x)
    assert (pruned.model.hidden, pruned.model.first.out_features) == (2, 5)
    torch.testing.assert_close(pruned.model(x), pruned.masks.apply_(net)(x))


class Reshaped(nn.Module):
    """A shape with a free entry, kept as a list (global response norm does that)."""

    def __init__(self):
        super().__init__()
        self.shape = [1, -1, 1, 1]
        self.conv, self.scale, self.last = nn.Conv2d(3, 8, 3), nn.Parameter(torch.rand(8)), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.conv(x) * self.scale.view(self.shape))


def test_a_free_entry_is_no_size():
    net, x = Reshaped(), torch.randn(1, 3, 5, 5)
    thin = sc.prune(net, sparsity=0.5, scope="layer", granularity="channel", example_inputs=x).model
    assert thin.shape == [1, -1, 1, 1]
    assert thin.scale.shape == (4,)


class Rotated(nn.Module):
    """Heads beside a table of angles that does not train but is a parameter."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.angles = nn.Parameter(torch.rand(5, 4), requires_grad=False)

    def forward(self, x):
        q, k, v = (f(x).view(x.shape[0], 5, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q * self.angles, k * self.angles, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_a_frozen_table_does_not_join_heads():
    groups = sc.couple(Rotated(), torch.randn(2, 5, 8)).groups()
    assert [(g.kind, g.units) for g in groups] == [("head", 2)]


class Positions(nn.Module):
    """More positions than the example has."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(64, 16))
        self.inner, self.head = nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.inner(x + self.places[: x.shape[1]]).relu())


def test_what_a_longer_input_needs_stays():
    model = Positions()
    pruned = sc.prune(model, granularity="channel", sparsity=0.5, scope="layer", example_inputs=torch.randn(1, 8, 16))
    assert pruned.model.places.shape == (64, 16)
    assert pruned.model.inner.out_features == 16
    assert pruned.model(torch.randn(1, 64, 16)).shape == (1, 64, 2)
    assert "meets no other layer" in sc.couple(model, torch.randn(1, 8, 16)).explain("places")


class Doubled(nn.Module):
    """Its code takes twice an attribute, so only even widths can be had of the first group."""

    def __init__(self, c=8):
        super().__init__()
        self.c = c
        self.fc, self.up, self.out = nn.Linear(5, 2 * c * 9), nn.ConvTranspose2d(2 * c, 12, 3), nn.Conv2d(12, 3, 1)

    def forward(self, z):
        return self.out(self.up(self.fc(z).view(-1, 2 * self.c, 3, 3).relu()).relu())


def test_widths_that_code_cannot_have_stay_whole():
    half, less = (
        sc.prune(
            Doubled(), granularity="channel", sparsity=sparsity, scope="layer", example_inputs=torch.randn(1, 5)
        ).model
        for sparsity in (0.5, 0.3)
    )
    assert (half.c, half.up.in_channels, half.up.out_channels) == (4, 8, 6)
    assert (less.c, less.up.in_channels, less.up.out_channels) == (8, 16, 8)
