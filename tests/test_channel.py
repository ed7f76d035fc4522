"""Coupled groups as a granularity, the method that uses them, and widths in multiples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.coupling.tricks import inputs, make
from torch import nn

import secateur as sc
from secateur.allocations.global_ import Global
from secateur.allocations.rounded import Rounded
from secateur.allocations.uniform import Uniform
from secateur.coupling.channels import Channels
from secateur.criteria.magnitude import Magnitude
from secateur.criteria.random import Random
from secateur.errors import BadScores, BadSparsity, NeedsTask, UnknownName
from secateur.methods.channel import Channel, _charged
from secateur.units import Table, Units


def slow_scores(model, groups, each=torch.abs):
    """Unit by unit: the mean evidence over every weight that the unit owns, in all of its places."""
    own = dict(model.named_parameters())
    found = {}
    for group in groups:
        found[group.name] = []
        for unit in range(group.units):
            weights = [
                own[name].detach().movedim(dim, 0)[index[unit]].reshape(-1)
                for (name, dim), index in group.places.items()
                if name in own
            ]
            found[group.name].append(float(each(torch.cat(weights)).mean()))
    return found


class TestChannels:
    @pytest.mark.parametrize(
        "name", ["residual", "dense_concat", "flatten", "attention_fused", "grouped", "lstm", "tied"]
    )
    def test_scores_are_means_over_all_places(self, name):
        model = make(name)
        groups = sc.couple(model, inputs(name)).groups()
        targets = {n: sc.LayerFacts() for g in groups for n, _ in g.places if n in dict(model.named_parameters())}
        units = Channels(groups=groups).pool(Magnitude()(model, targets))
        for key, expected in slow_scores(model, groups).items():
            torch.testing.assert_close(units[key].flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-6)

    def test_a_unit_takes_all_of_its_places(self):
        model = make("residual")
        groups = sc.couple(model, inputs("residual")).groups()
        granularity = Channels(groups=groups)
        targets = {n: sc.LayerFacts() for g in groups for n, _ in g.places if n in dict(model.named_parameters())}
        scores = Magnitude()(model, targets)
        keep = {granularity.key(g): torch.arange(g.units)[None] != 2 for g in groups}
        masks = granularity.spread(keep, scores)
        for group in groups:
            for (name, dim), index in group.places.items():
                if name in masks:
                    assert not masks[name].movedim(dim, 0)[index[2]].any()
                    assert masks[name].movedim(dim, 0)[index[3]].any()

    def test_groups_of_one_maker_have_keys_of_their_own(self):
        class Halves(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 2), nn.Linear(4, 2)

            def forward(self, x):
                one, two = self.a(x).split([4, 4], -1)
                return self.b(one.exp()), self.c(two)

        groups = sc.couple(Halves(), torch.ones(1, 4)).groups()
        keys = [Channels(groups=groups).key(g) for g in groups]
        assert len(set(keys)) == len(keys)


class TestChannel:
    def test_the_object_is_its_configuration(self):
        one, two = (Channel(criterion=Magnitude(), allocation=Uniform(sparsity=0.5), round_to=2) for _ in range(2))
        assert one == two
        assert hash(one) == hash(two)
        assert "round_to=2" in repr(one)

    def test_the_call_is_that_of_prune(self):
        model, example = make("residual"), inputs("residual")
        ours = Channel(criterion=Random(seed=3), allocation=Uniform(sparsity=0.5))(model, example_inputs=example)
        theirs = sc.prune(
            model, "random", seed=3, sparsity=0.5, scope="layer", granularity="channel", example_inputs=example
        )
        assert ours.masks == theirs.masks
        assert ours.structure == theirs.structure

    def test_a_coupling_found_before_is_used(self):
        model, example = make("residual"), inputs("residual")
        coupling = sc.couple(model, example, ignore=["a"])
        method = Channel(criterion=Magnitude(), allocation=Uniform(sparsity=0.5))
        assert method(model, example_inputs=example, coupling=coupling).model.a[0].out_channels == 8

    def test_refusals(self):
        with pytest.raises(BadSparsity, match="round_to=-8 must be a positive whole number"):
            Channel(criterion=Magnitude(), allocation=Uniform(sparsity=0.5), round_to=-8)
        with pytest.raises(NeedsTask, match="example_inputs="):
            Channel(criterion=Magnitude(), allocation=Uniform(sparsity=0.5))(make("residual"))


class TestCostWeight:
    """Linear 8 -> 2 -> 8 -> 3: a unit of the first group costs 8 + 8 = 16 multiply-accumulates, one of the second 2 + 3 = 5."""

    def test_by_hand(self):
        """All scores are 1, and ties go to the earlier group; once cost counts, a unit of 16 leaves first."""
        model = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        for parameter in model.parameters():
            parameter.data.fill_(1.0)
        for weight, widths in [(0.0, [2, 7]), (1e4, [1, 8])]:
            method = Channel(criterion=Magnitude(), allocation=Global(sparsity=0.1, min_kept=1), cost_weight=weight)
            pruned = method(model, example_inputs=torch.ones(1, 8))
            assert [pruned.model[0].out_features, pruned.model[2].out_features] == widths
            assert ("Magnitude less 10000 for each million MACs" in pruned.report.method) == (weight > 0)

    def test_the_scores_by_hand(self):
        model = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        coupling = sc.couple(model, torch.ones(1, 8))
        channels = Channels(groups=coupling.groups())
        members = dict.fromkeys(dict(model.named_parameters()), sc.LayerFacts())
        plain = Magnitude()(model, members)
        charged = channels.pool(_charged(plain, 100.0, coupling, model, torch.ones(1, 8)))
        before = channels.pool(plain)
        torch.testing.assert_close(charged["0.weight"], before["0.weight"] - 100 * 16e-6)
        torch.testing.assert_close(charged["2.weight"], before["2.weight"] - 100 * 5e-6)

    def test_from_the_front_door_and_refused(self):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        pruned = sc.prune(model, sparsity=0.5, granularity="channel", cost_weight=1e-3, example_inputs=torch.ones(1, 4))
        assert pruned.model[0].out_features == 4
        with pytest.raises(BadScores, match=r"cost_weight=-1 must be 0 or more"):
            sc.prune(model, sparsity=0.5, granularity="channel", cost_weight=-1, example_inputs=torch.ones(1, 4))
        with pytest.raises(UnknownName, match="no option 'cost_weight'"):
            sc.prune(model, sparsity=0.5, cost_weight=1e-3)


class TestScoresOfUnits:
    @pytest.mark.parametrize("name", ["residual", "dense_concat", "attention_fused", "grouped", "lstm", "tied"])
    def test_pool_gives_them_again(self, name):
        model = make(name)
        channels = Channels(groups=sc.couple(model, inputs(name)).groups())
        values = {n: p.detach() for n, p in model.named_parameters()}
        wanted = {channels.key(g): torch.randn(g.units) for g in channels.groups}
        found = channels.pool(channels.scores_of(wanted, values))
        assert set(found) == set(wanted)
        for key, scores in wanted.items():
            torch.testing.assert_close(found[key].flatten(), scores)


class Fixed:
    """An allocation that keeps a given number."""

    def __init__(self, count):
        self.count = count

    def __call__(self, units):
        return dict.fromkeys(units, self.count)


def units(total):
    return Units({"a": Table.of(torch.arange(float(total)), weights=1.0)})


class TestRounded:
    @pytest.mark.parametrize(
        ("count", "total", "multiple", "entries", "expected"),
        [
            (20, 64, 8, 1, 24),  # 2.5 multiples: up
            (19, 64, 8, 1, 16),
            (1, 64, 8, 1, 8),  # one multiple at least
            (3, 5, 8, 1, 5),  # narrower than a multiple: whole
            (64, 64, 8, 1, 64),
            (30, 30, 8, 1, 30),  # nothing was to leave
            (3, 12, 8, 64, 3),  # a head of 64 is a multiple by itself
            (3, 12, 8, 4, 4),  # two heads of 4 make 8
            (5, 9, 6, 4, 6),  # three units of 4 make 12
        ],
    )
    def test_by_hand(self, count, total, multiple, entries, expected):
        rounded = Rounded(allocation=Fixed(count), multiple=multiple, entries=(("a", entries),))
        assert rounded(units(total)) == {"a": expected}

    @given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 3, 64]))
    def test_multiples_or_whole(self, a, b, multiple, entries):
        count, total = min(a, b), max(a, b)
        (kept,) = Rounded(allocation=Fixed(count), multiple=multiple, entries=(("a", entries),))(units(total)).values()
        assert 1 <= kept <= total
        assert kept == total or kept * entries % multiple == 0
        assert abs(kept - count) <= multiple
