"""Sensitivity of coupled channels: points that equal narrowing, an untouched model, and an allocation that prunes."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.coupling.channels import Channels
from secateur.errors import NeedsTask, NothingToPrune
from secateur.sensitivity import sensitivity

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.outer(self.inner(x).relu())).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Residual().eval()


@dataclass(frozen=True)
class Half:
    """An allocation of the test's own: half of one group."""

    only: str

    def __call__(self, units):
        return {name: units.count(name) // (1 + (name == self.only)) for name in units}


def far(dense):
    """How far the outputs are from those of the dense model."""
    expected = dense(X).detach()
    return sc.Task(evaluate=lambda model: -float((model(X).detach() - expected).abs().max()))


def test_a_curve_for_each_group_under_its_key(net):
    groups = sc.couple(net, X).groups()
    found = sensitivity(net, far(net), sparsities=[0.5], granularity="channel", example_inputs=X)
    whole = Channels(groups=groups)
    assert list(found.curves) == [whole.key(group) for group in groups] == ["stem.weight", "inner.weight"]
    assert [points[0][0] for points in found.curves.values()] == [0.5, 0.5]
    # stem: 8x27 weights and 8 biases, 16 of the norm, 6x72 read, 8x54 and 8 biases made, 4x8 read; inner: 6x72, 6, 8x54
    assert found.sizes == {"stem.weight": 216 + 8 + 16 + 432 + 432 + 8 + 32, "inner.weight": 432 + 6 + 432}


def test_a_point_equals_narrowing_that_group_alone(net):
    task = far(net)
    found = sensitivity(net, task, sparsities=[0.5], granularity="channel", example_inputs=X)
    for alone in found.curves:
        thin = sc.prune(net, scope=Half(only=alone), granularity="channel", example_inputs=X).model
        assert thin.stem.out_channels + thin.inner.out_channels < 14
        assert task.evaluate(thin) == pytest.approx(found.curves[alone][0][1], rel=1e-4)


def test_the_model_and_its_weights_are_as_they_were(net):
    net.stem.weight.data[0, 0, 0, 0] = -0.0
    before, seen = copy.deepcopy(net.state_dict()), []

    def evaluate(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return 0.0

    sensitivity(net, sc.Task(evaluate=evaluate), sparsities=[0.5], granularity="channel", example_inputs=X)
    last = seen[-1]["stem.weight"].view(torch.int32)  # the other group is pruned here, so this weight is whole again
    assert torch.equal(last, before["stem.weight"].view(torch.int32))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_group_never_loses_its_last_unit_and_no_point_is_measured_twice(net):
    asked = []
    task = sc.Task(evaluate=lambda model: asked.append(1) or 0.0)
    found = sensitivity(net, task, sparsities=[0.9, 0.95, 0.99], granularity="channel", example_inputs=X)
    assert found.curves == {"stem.weight": ((7 / 8, 0.0),), "inner.weight": ((1 - 1 / 6, 0.0),)}
    assert len(asked) == 3  # the dense model, and one point each


def test_the_allocation_found_prunes_channels(net):
    curves = sensitivity(net, far(net), granularity="channel", example_inputs=X)
    pruned = sc.prune(net, scope=curves.allocation(0.5), granularity="channel", example_inputs=X)
    assert sum(group.kept for group in pruned.report.groups) == 7  # of 14
    assert pruned.model(X).shape == net(X).shape
    most = sc.prune(net, scope=curves.allocation(0.85), granularity="channel", example_inputs=X)
    assert [group.kept for group in most.report.groups] == [1, 1]


def test_ignored_layers_have_no_curve(net):
    found = sensitivity(net, far(net), granularity="channel", example_inputs=X, ignore=["head"], sparsities=[0.5])
    assert list(found.curves) == ["inner.weight"]  # what the head reads stays, and the stem makes it


def test_what_cannot_be_measured_is_refused(net):
    with pytest.raises(NeedsTask, match="example_inputs"):
        sensitivity(net, far(net), granularity="channel")
    one = nn.Linear(3, 2)
    with pytest.raises(NothingToPrune, match="no channel of Linear"):
        sensitivity(one, sc.Task(evaluate=lambda m: 0.0), granularity="channel", example_inputs=torch.zeros(1, 3))
