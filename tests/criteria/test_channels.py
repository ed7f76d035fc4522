"""Criteria that judge whole channels: numbers by hand, and what each is for."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.coupling.channels import Channels
from secateur.criteria.activation import Activation
from secateur.criteria.bn_scale import BnScale
from secateur.criteria.filter_norm import FilterNorm
from secateur.criteria.fisher import Fisher
from secateur.criteria.fpgm import Fpgm
from secateur.criteria.reconstruction import Reconstruction
from secateur.criteria.taylor_gate import TaylorGate
from secateur.criteria.taylor_map import TaylorMap
from secateur.errors import BadScores, NeedsTask


def linear(rows, readers):
    """A net of two linear layers without biases, with these weights."""
    net = nn.Sequential(nn.Linear(len(rows[0]), len(rows), bias=False), nn.Linear(len(rows), len(readers), bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(rows))
        net[1].weight.copy_(torch.tensor(readers))
    return net


def scored(net, criterion, task=None, x=None):
    """The finished scores of the first group."""
    groups = sc.couple(net, x if x is not None else torch.ones(1, net[0].weight.shape[1])).groups()
    targets = {n: sc.LayerFacts() for g in groups for n, _ in g.places if n in dict(net.named_parameters())}
    units = Channels(groups=groups).pool(criterion(net, targets, task))
    return units[next(iter(units))].flatten()


class TestWeightsOnly:
    net = linear([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0, 1.0]])

    def test_filter_norms(self):
        assert scored(self.net, FilterNorm()).tolist() == [7, 1, 0]
        assert scored(self.net, FilterNorm(p=2)).tolist() == [5, 1, 0]

    def test_readers_do_not_count(self):
        other = linear([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 9.0, 9.0]])
        assert scored(other, FilterNorm()).tolist() == [7, 1, 0]

    def test_geometric_median(self):
        """(0,0), (1,0), (0,1), (.5,.5): the last one is in the middle of the others."""
        net = linear([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], [[1.0] * 4])
        root = 0.5**0.5
        expected = torch.tensor([2 + root, 1 + 2**0.5 + root, 1 + 2**0.5 + root, 3 * root])
        torch.testing.assert_close(scored(net, Fpgm()), expected)

    def test_size_does_not_protect_a_filter_with_a_twin(self):
        rows = [[10.0, 10.0], [10.0, 10.1], [-1.0, 0.0], [0.0, -2.0], [3.0, -1.0]]
        assert scored(linear(rows, [[1.0] * 5]), FilterNorm()).argmin() == 2
        assert scored(linear([*rows, [10.1, 10.0]], [[1.0] * 6]), Fpgm()).argmin() != 2

    def test_batch_norm_scales(self):
        net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
        with torch.no_grad():
            net[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
        assert scored(net, BnScale(), x=torch.ones(1, 1, 2, 2)).tolist() == [0.5, 2, 1]

    def test_groups_without_evidence_stay(self):
        net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1))
        thin = sc.prune(
            net, "bn_scale", sparsity=0.5, granularity="channel", example_inputs=torch.ones(1, 1, 2, 2)
        ).model
        assert (thin[0].out_channels, thin[2].out_channels) == (2, 6)

    def test_no_evidence_at_all_is_an_error(self):
        with pytest.raises(BadScores, match="says nothing about any group"):
            sc.prune(
                linear([[1.0], [2.0]], [[1.0, 1.0]]),
                "bn_scale",
                sparsity=0.5,
                granularity="channel",
                example_inputs=torch.ones(1, 1),
            )

    def test_only_channels_can_be_judged(self):
        for method in ("fpgm", "filter_norm", "bn_scale"):
            with pytest.raises(BadScores, match="judges whole channels"):
                sc.prune(self.net, method, sparsity=0.5)

    def test_words(self):
        with pytest.raises(BadScores, match="p is 1"):
            FilterNorm(p=3)
        with pytest.raises(BadScores, match="rms, mean, std, apoz"):
            Activation(statistic="max")


class TestFlow:
    """x goes in, channel j is w_j x, and the loss is the mean over examples of sum_j v_j w_j x."""

    net = linear([[1.0], [2.0], [-1.0]], [[3.0, 1.0, 0.5]])
    x = torch.tensor([[1.0], [-1.0], [2.0], [4.0]])
    task = sc.Task([x], loss=lambda model, x: model(x).mean())

    def test_activations(self):
        rms = self.x.square().mean().sqrt() * torch.tensor([1.0, 2.0, 1.0])
        torch.testing.assert_close(scored(self.net, Activation(), self.task), rms)
        mean = self.x.abs().mean() * torch.tensor([1.0, 2.0, 1.0])
        torch.testing.assert_close(scored(self.net, Activation(statistic="mean"), self.task), mean)
        std = self.x.std(correction=0) * torch.tensor([1.0, 2.0, 1.0])
        torch.testing.assert_close(scored(self.net, Activation(statistic="std"), self.task), std)
        net = nn.Sequential(self.net[0], nn.ReLU(), self.net[1])
        assert scored(net, Activation(statistic="apoz"), self.task).tolist() == [0.75, 0.75, 0.25]

    def test_activations_need_no_loss(self):
        torch.testing.assert_close(
            scored(self.net, Activation(), sc.Task([self.x])), scored(self.net, Activation(), self.task)
        )

    def test_the_absolute_value_comes_before_the_mean(self):
        """dL/dg of channel j and example n is v_j w_j x_n: the signs differ between examples and may not cancel."""
        theta = torch.tensor([3.0, 2.0, 0.5]) * self.x.abs().mean()
        torch.testing.assert_close(scored(self.net, TaylorMap(normalise=False), self.task), theta)
        torch.testing.assert_close(scored(self.net, TaylorMap(), self.task), theta / theta.norm())
        torch.testing.assert_close(
            scored(self.net, TaylorGate(), self.task), (torch.tensor([3.0, 2.0, -0.5]) * self.x.mean()).square()
        )

    def test_cancelling_examples(self):
        task = sc.Task([torch.tensor([[1.0], [-1.0]])], loss=self.task.loss)
        assert scored(self.net, TaylorGate(), task).abs().max() == 0
        assert scored(self.net, TaylorMap(), task).min() > 0

    def test_batches_do_not_matter_for_examples(self):
        split = sc.Task([self.x[:1], self.x[1:]], loss=self.task.loss)
        torch.testing.assert_close(scored(self.net, TaylorMap(), split), scored(self.net, TaylorMap(), self.task))

    def test_fisher(self):
        expected = (torch.tensor([3.0, 2.0, 0.5])).square() * self.x.square().mean() / 2
        torch.testing.assert_close(scored(self.net, Fisher(), self.task), expected)

    def test_they_need_data(self):
        for method in ("taylor_map", "taylor_gate", "fisher", "activation", "reconstruction"):
            with pytest.raises(NeedsTask, match=r"sc\.Task"):
                sc.prune(self.net, method, sparsity=0.5, granularity="channel", example_inputs=self.x)


def test_reconstruction_of_independent_channels():
    """Channels that do not correlate cost what they carry: |v_j|^2 E[x_j^2], of the whole."""
    net = linear([[1.0, 0.0], [0.0, 2.0]], [[3.0, 1.0]])
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    expected = torch.tensor([9.0, 4.0]) / 13
    torch.testing.assert_close(scored(net, Reconstruction(damping=0.0), sc.Task([x])), expected)


def test_reconstruction_keeps_one_of_two_that_carry_the_same():
    net = linear([[1.0, 0.0], [1.0, 0.0], [0.0, 0.3]], [[3.0, 1.0, 1.0]])
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    scores = scored(net, Reconstruction(damping=1e-6), sc.Task([x]))
    assert sorted(scores.tolist())[0] < 1e-4
    assert scores[:2].max() > 0.5
    assert int(scores.argmin()) in (0, 1)


def test_a_scale_on_the_loss_does_not_change_the_order():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.randn(32, 4)
    one, two = (sc.Task([x], loss=lambda m, b, c=c: c * m(b).square().mean()) for c in (1.0, 7.0))
    for criterion in (TaylorMap(), TaylorGate(), Fisher()):
        first, second = (scored(net, criterion, task, torch.ones(1, 4)).argsort() for task in (one, two))
        assert torch.equal(first, second)
