"""Which groups qualify for merging: what stands between a maker and its readers, found out by feeding noise."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.coupling.tricks import NAMES, inputs, make
from torch import nn

import secateur as sc
from secateur.merging.noise import fields_like
from secateur.merging.passage import wires_of
from secateur.merging.wiring import filters_of, outgoing_of, set_outgoing_
from secateur.solvers.likeness import Kernel


@torch.library.custom_op("tests_passage::shrunk", mutates_args=())
def shrunk(z: torch.Tensor) -> torch.Tensor:
    """By the largest of all channels."""
    return z / z.abs().max()


shrunk.register_fake(torch.empty_like)


@sc.coupling.rule("tests_passage::shrunk")
def _(dye, out, z):
    return dye.of(z)  # says that channels pass through one by one


class Between(nn.Module):
    """Convolution, something, convolution."""

    def __init__(self, between, norm=None):
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            norm or nn.Identity(),
            nn.Conv2d(8, 4, 3, padding=1),
        )
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.norm(self.first(x))))


def judged(model, x=None):
    model = model.eval()
    x = torch.randn(2, 3, 8, 8) if x is None else x
    return wires_of(model, sc.couple(model, x).groups(), x)


def reason(model, x=None):
    wires, why = judged(model, x)
    assert not wires
    (text,) = why
    return text


@pytest.mark.parametrize(
    ("between", "slope"),
    [
        (nn.ReLU(), 0.0),
        (nn.ReLU(inplace=True), 0.0),
        (nn.LeakyReLU(0.2), 0.2),
        (nn.PReLU(), 0.25),
        (nn.Identity(), 1.0),
        (torch.abs, -1.0),
        (lambda z: torch.where(z > 0, z, 0.3 * z), 0.3),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), 0.0),
        (nn.Sequential(nn.Dropout(0.5), nn.Hardtanh(0, 1e9), nn.Upsample(scale_factor=2)), 0.0),
    ],
)
def test_homogeneous(between, slope):
    (wire,), why = judged(Between(between))
    assert wire.homogeneous
    assert wire.kernel == pytest.approx(Kernel.bent(slope))
    assert wire.refits
    assert not why


@pytest.mark.parametrize(
    "between",
    [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(1), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))],
    ids=str,
)
def test_what_is_expected_of_pooling_by_maxima(between):
    """Against sampling, also at angles that were not fitted."""
    (wire,), _ = judged(Between(between))
    generator = torch.Generator().manual_seed(8)
    one, other = (fields_like(torch.zeros(1, 4000, 8, 8), generator)[0].unsqueeze(1) for _ in range(2))
    cosines = torch.tensor([1.0, 0.7, 0.3, 0.0, -0.5, -1.0])
    mixed = [between(c * one + (1 - c * c).sqrt() * other) for c in cosines]
    sampled = torch.stack([(between(one) * there).mean() for there in mixed])
    torch.testing.assert_close(wire.kernel(cosines), sampled / sampled[0], atol=0.04, rtol=0)
    assert wire.slope == (0 if isinstance(between, nn.Sequential) else 1)
    assert wire.refits


@pytest.mark.parametrize(
    "between",
    [
        nn.Tanh(),
        nn.GELU(),
        nn.Sigmoid(),
        nn.SiLU(),
        nn.Hardswish(),
        nn.ReLU6(),
        nn.Softplus(),
        nn.ELU(),
        nn.InstanceNorm2d(8),
    ],
    ids=lambda m: type(m).__name__,
)
def test_not_homogeneous_but_the_same_for_all(between):
    (wire,), _ = judged(Between(between))
    assert not wire.homogeneous
    assert not wire.refits


class TestReasons:
    def test_per_channel_slopes(self):
        assert reason(Between(nn.PReLU(8))) == "they also sit in 'between'"

    def test_depthwise(self):
        assert reason(Between(nn.Conv2d(8, 8, 3, groups=8))) == "they also sit in 'between'"

    def test_norm_behind_the_activation(self):
        assert (
            reason(Between(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8))))
            == "'between.1' does not follow 'first' directly"
        )

    def test_two_norms(self):
        assert reason(Between(nn.BatchNorm2d(8), nn.BatchNorm2d(8))) == "2 batch norms work on them (norm, between)"

    def test_norm_without_statistics(self):
        norm = nn.BatchNorm2d(8, track_running_stats=False)
        assert reason(Between(nn.ReLU(), norm)) == "'norm' has no running statistics"

    def test_constants_by_channel(self):
        """A buffer that no module of torch owns tells channels apart."""

        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.rand(8, 1, 1))

            def forward(self, z):
                return z * self.scale

        assert reason(Between(Scaled())) == "they also sit in 'between'"

    def test_residual_stream(self):
        model, x = make("residual"), inputs("residual")
        _, why = judged(model, x)
        assert why["2 layers make them (stem.0.weight, b.0.weight)"] == ["stem.0.weight"]

    def test_heads_and_recurrent_units(self):
        for name in ("multihead", "attention_fused"):
            assert "a unit is a head" in judged(make(name), inputs(name))[1]
        assert not judged(make("lstm"), inputs("lstm"))[0]

    def test_a_weight_of_several_layers(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
                self.two.weight = self.one.weight

            def forward(self, x):
                h = self.first(x).relu()
                return self.one(h) + self.two(h.flip(0))

        assert reason(Twice(), torch.randn(2, 4)) == "one.weight belongs to several layers"

    def test_readers_that_are_no_modules(self):
        class Functional(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

            def forward(self, x):
                return F.linear(self.first(x).relu(), self.last.weight, self.last.bias)

        assert reason(Functional(), torch.randn(2, 4)) == "its layers are not called as modules"

    def test_what_reads_without_weights(self):
        """The places of the group do not show that channels meet in a product; like units made and merged do."""

        class Energy(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

            def forward(self, x):
                h = self.first(x).relu()
                return self.last(h) + (h @ h.t()).diagonal()[:, None]

        assert reason(Energy(), torch.randn(2, 4)) == "something besides its readers looks at them"

        zeros = torch.zeros(2, 4)  # nothing to be seen on the example, but on noise
        net = Energy()
        for layer in (net.first, net.last):
            nn.init.zeros_(layer.bias)
        assert reason(net, zeros) == "something besides its readers looks at them"

    def test_channels_that_know_of_each_other(self):
        class Competing(nn.Module):
            def forward(self, z):
                return z * (z > z.roll(1, 1))

        assert reason(Between(Competing())) == "all of them are one unit"  # coupling knows already

    def test_different_activations_in_one_group(self):
        assert (
            reason(Between(lambda z: torch.cat([z[:, :4].relu(), z[:, 4:].tanh()], 1)))
            == "not all of them are read alike"
        )

    def test_a_rule_of_the_users_own_that_is_wrong(self):
        assert reason(Between(lambda z: shrunk(1 * z))) == "what is read of one depends on the others"

    def test_what_does_not_arrive(self):
        assert reason(Between(lambda z: z * 0)) == "what they are does not arrive at the readers"


@pytest.mark.parametrize("name", NAMES)
def test_the_zoo_is_left_as_it_was_and_every_group_is_judged(name):
    model, x = make(name), inputs(name)
    groups = sc.couple(model, x).groups()
    before = copy.deepcopy(model.state_dict())
    wires, why = wires_of(model, groups, x)
    assert {group.name for group in groups} == {wire.group.name for wire in wires} | {
        n for ns in why.values() for n in ns
    }
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.training


class TestFilters:
    def test_batch_norm_is_folded_in(self):
        model = Between(nn.ReLU(), nn.BatchNorm2d(8)).eval()
        for tensor in (model.norm.weight, model.norm.bias, model.norm.running_mean, model.norm.running_var):
            tensor.data.uniform_(0.5, 1.5)
        model.norm.weight.data[3] *= -1
        (wire,), _ = judged(model)
        weights, biases = filters_of(model, wire)
        x = torch.randn(2, 3, 8, 8)
        folded = F.conv2d(x.double(), weights.squeeze(1), biases.squeeze(1), padding=1)
        torch.testing.assert_close(folded, model.norm(model.first(x)).double(), rtol=1e-4, atol=1e-5)

    def test_flattened_images_own_columns(self):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
        (wire,), _ = judged(model, torch.randn(1, 1, 8, 8))
        outgoing = outgoing_of(model, wire)
        expected = model[4].weight.detach().reshape(2, 4, 9).transpose(0, 1).reshape(4, 18)
        assert sorted(outgoing[1].tolist()) == sorted(expected[1].double().tolist())
        set_outgoing_(model, wire, outgoing.flip(0))
        torch.testing.assert_close(
            model[4].weight.detach().reshape(2, 4, 9).transpose(0, 1).reshape(4, 18), expected.flip(0)
        )
