"""How much stays where, for methods that choose weight after weight."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.allocations.erk import Erk
from secateur.allocations.global_ import Global
from secateur.allocations.per_layer import PerLayer
from secateur.errors import BadSparsity, UnknownName
from secateur.quotas import Quota, leaving, quotas_of
from secateur.units import Table, Units


def units(*sizes):
    generator = torch.Generator().manual_seed(0)
    return Units({chr(97 + i): Table.of(torch.rand(size, generator=generator)) for i, size in enumerate(sizes)})


def test_quotas_by_hand():
    found = units(4, 6, 10)
    assert quotas_of(Global(sparsity=0.5, min_kept=2), found) == (Quota(("a", "b", "c"), 10, 2),)
    named = PerLayer(sparsities=(("b", 0.0),), otherwise=Global(sparsity=0.5))
    assert quotas_of(named, found) == (Quota(("b",), 6), Quota(("a", "c"), 7))
    assert sum(quota.keep for quota in quotas_of(Erk(sparsity=0.5), found)) == 10


@pytest.mark.parametrize("seed", range(5))
def test_units_leave_as_by_walking_along_their_scores(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a": 5, "b": 9, "c": 7}
    quotas = [Quota(("a", "c"), 5, least=2), Quota(("b",), 6)]
    scores = torch.rand(21, generator=generator)
    scores[torch.randperm(21, generator=generator)[:3]] = torch.inf
    owner = [name for name, size in sizes.items() for _ in range(size)]
    left = {name: sum(o == name and s < torch.inf for o, s in zip(owner, scores, strict=True)) for name in sizes}
    wanted = []
    for index in scores.argsort(stable=True).tolist():
        name = owner[index]
        quota = next(q for q in quotas if name in q.names)
        if scores[index] < torch.inf and left[name] > quota.least and sum(left[n] for n in quota.names) > quota.keep:
            wanted.append(index)
            left[name] -= 1
    assert leaving(scores, sizes, quotas, 21).tolist() == wanted
    assert leaving(scores, sizes, quotas, 3).tolist() == wanted[:3]


class TestSurgeon:
    """What says how much stays where was read for its total alone, whatever it said beside it."""

    def pruned(self, each=5, sparsity=0.5, **how):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        task = sc.Task([torch.randn(64, 6)])
        return sc.prune(model, "obs", sparsity=sparsity, task=task, each=each, alpha=1e-3, **how).masks

    def test_the_same_fraction_of_every_layer(self):
        assert {n: int(m.sum()) for n, m in self.pruned(scope="layer").items()} == {
            "0.weight": 24,
            "0.bias": 4,
            "2.weight": 16,
            "2.bias": 2,
        }
        assert int(self.pruned(scope="layer", include_bias=False)["2.weight"].sum()) == 16

    def test_layers_that_are_named(self):
        free = self.pruned()
        masks = self.pruned(overrides={"2.weight": 0.0, "*.bias": 0.0})
        assert not free["2.weight"].all()
        assert masks["2.weight"].all()
        assert masks["0.bias"].all()
        assert int(masks["0.weight"].sum()) == 24
        assert self.pruned(scope="layer", overrides={"2": 0.25})["2.weight"].sum() == 24

    @pytest.mark.parametrize("each", [1, 1000])
    def test_a_minimum_in_every_layer(self, each):
        free, masks = self.pruned(each, 0.9), self.pruned(each, 0.9, min_kept=2)
        assert free.kept == masks.kept == 9
        assert min(int(mask.sum()) for mask in free.values()) < 2
        assert all(int(mask.sum()) >= 2 for mask in masks.values())

    def test_what_cannot_be(self):
        with pytest.raises(BadSparsity, match="min_kept=10 over 4 layers"):
            self.pruned(sparsity=0.9, min_kept=10)
        with pytest.raises(UnknownName, match="names 'nope'"):
            self.pruned(overrides={"nope": 0.0})
