"""Layer-wise surgery on weights that several layers share: what all of them take in counts."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import UnknownLayer

LEFT = (torch.arange(16) < 8).float()


class Halves(nn.Module):
    """Two layers of one weight; one reads the left half of the inputs, the other the right."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(16, 12)
        self.b.weight = self.a.weight

    def forward(self, x):
        return torch.cat([self.a(x * LEFT), self.b(x * (1 - LEFT))], 1)


class Block(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.into, self.out = nn.Linear(16, 16), out

    def forward(self, x):
        return x + self.out(torch.relu(self.into(x)))


def batches():
    return list(torch.randn(3, 64, 16, generator=torch.Generator().manual_seed(1)))


def pruned(model, **how):
    return sc.prune(model, "layer_obs", sparsity=0.5, task=sc.Task(batches()), **how)


def off(one, other):
    x = torch.cat(batches())
    with torch.no_grad():
        return (one(x) - other(x)).square().sum(1).mean().item()


@pytest.mark.parametrize("how", [{}, {"scope": "layer"}, {"targets": "dense"}, {"damping": "held_out"}], ids=str)
@pytest.mark.parametrize("solver", ["columns", "exact", "magnitude"])
def test_all_uses_are_summed(solver, how):
    torch.manual_seed(0)
    model = Halves()
    found = pruned(model, solver=solver, **how)
    (row,) = found.report.settings["layers"]
    assert row["samples"] == 384
    assert row["dead"] == 0
    assert row["measured"] == pytest.approx(off(found.model, model) / 2, rel=1e-4)  # a mean over both uses
    assert found.model.a.weight is found.model.b.weight
    assert torch.equal(found.model.b.bias, model.b.bias)  # neither bias can make up for the mean of both


def test_layers_that_share_their_bias_too_are_one_layer_called_twice():
    class Twice(nn.Module):
        def __init__(self, *, tied):
            super().__init__()
            torch.manual_seed(0)
            self.a = nn.Linear(16, 12)
            self.b = self.a
            if tied:
                self.b = nn.Linear(16, 12)
                self.b.weight, self.b.bias = self.a.weight, self.a.bias

        def forward(self, x):
            return self.a(x + 1) + self.b(3 * x)

    one, other = pruned(Twice(tied=False)), pruned(Twice(tied=True))
    assert torch.equal(one.model.a.weight, other.model.a.weight)
    assert torch.equal(one.model.a.bias, other.model.a.bias)
    assert not torch.equal(one.model.a.bias, Twice(tied=True).a.bias)


@pytest.mark.parametrize("how", [{}, {"scope": "layer"}, {"tune": 2, "rate": 1e-3}], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["one layer", "layers of one weight"])
def test_weights_that_several_blocks_use_are_seen_in_all_of_them(how, tied):
    torch.manual_seed(0)
    one = nn.Linear(16, 16)
    blocks = [Block(nn.Linear(16, 16) if tied else one) for _ in range(3)]
    for block in blocks[1:] if tied else ():
        block.out.weight = blocks[0].out.weight
    model = nn.Sequential(*blocks)
    found = pruned(model, **how)
    rows = {row["name"]: row["samples"] for row in found.report.settings["layers"]}
    assert rows == {"0.into.weight": 192, "1.into.weight": 192, "2.into.weight": 192, "0.out.weight": 576}
    plain = sc.prune(model, "magnitude", sparsity=0.5, scope=how.get("scope", "global"))
    assert off(found.model, model) < off(plain.model, model) / 1.5


def test_a_chain_with_a_weight_in_two_places_has_no_bound():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    assert set(pruned(model).report.settings["bound"]) == {"paper", "spectral", "measured"}
    model[2].weight = model[0].weight
    assert pruned(model).report.settings["bound"] == {}


def test_a_layer_that_another_one_stands_in_for_is_heard_there():
    """The first that holds the weight never runs."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.busy = nn.Linear(16, 12), nn.Linear(16, 12)
            self.busy.weight = self.idle.weight

        def forward(self, x):
            return self.busy(x)

    found = pruned(Late())
    assert [row["samples"] for row in found.report.settings["layers"]] == [192]
    assert found.report.notes == ()


def test_uses_without_a_rule_are_refused_by_name():
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.RNNCell(16, 16))
    model[1].weight_ih = model[0].weight
    with pytest.raises(
        UnknownLayer, match=r"'0.weight' is shared with '1.weight_ih' of a RNNCell.*ignore=\['0.weight'\]"
    ):
        pruned(model)

    class Mirror(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.of = weight

        def forward(self, code):
            return code @ self.of

    code = nn.Linear(16, 8)
    with pytest.raises(UnknownLayer, match=r"'0.weight' is shared with '1.of' of a Mirror"):
        pruned(nn.Sequential(code, Mirror(code.weight)))
