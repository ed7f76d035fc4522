"""Gates against finite differences: what a factor on a channel does to the loss of every example."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.gates import by_channel, examples_in, gate_gradients, read_by, reader_inputs

cross_entropy = nn.functional.cross_entropy


def convnet():
    torch.manual_seed(0)
    body = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(5 * 16, 3)).double().eval()


def targets_of(model):
    return {n: sc.LayerFacts() for n, p in model.named_parameters() if p.dim() > 1}


def test_against_finite_differences():
    model, x, y = convnet(), torch.randn(7, 1, 8, 8).double(), torch.randint(0, 3, (7,))
    task = sc.Task([(x, y)], loss=lambda m, b: cross_entropy(m(b[0]), b[1]))
    (gates,) = gate_gradients(model, targets_of(model), task, "a test")
    assert {place: tuple(g.shape) for place, g in gates.items()} == {("3.weight", 1): (6, 7), ("6.weight", 1): (80, 7)}

    @torch.no_grad()
    def loss(n, channel, factor):
        hidden = model[:3](x[n : n + 1]).clone()
        hidden[:, channel] *= factor
        return float(cross_entropy(model[3:](hidden), y[n : n + 1]))

    for channel in (0, 4):
        slopes = [(loss(n, channel, 1 + 1e-4) - loss(n, channel, 1 - 1e-4)) / 2e-4 for n in range(7)]
        torch.testing.assert_close(gates["3.weight", 1][channel], torch.tensor(slopes), rtol=1e-4, atol=1e-6)


def test_readers_of_a_residual_stream_add_up():
    """Shutting a channel of the stream shuts it for every reader: the derivative is the sum over them."""

    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.back, self.head = (
                nn.Linear(3, 4),
                nn.Linear(4, 5),
                nn.Linear(5, 4),
                nn.Linear(4, 2),
            )

        def forward(self, x):
            x = self.first(x)
            return self.head(x + self.back(self.inner(x).tanh()))

    torch.manual_seed(1)
    model, x = Stream().double(), torch.randn(6, 3).double()
    task = sc.Task([x], loss=lambda m, b: m(b).square().sum(1).mean())
    (gates,) = gate_gradients(model, targets_of(model), task, "a test")

    @torch.no_grad()
    def loss(factor):
        h = model.first(x).clone()
        inner = h.clone()
        inner[:, 2] *= factor
        out = h + model.back(model.inner(inner).tanh())
        out[:, 2] *= factor
        return model.head(out).square().sum(1)

    slope = (loss(1 + 1e-5) - loss(1 - 1e-5)) / 2e-5
    total = gates["inner.weight", 1][2] + gates["head.weight", 1][2]
    torch.testing.assert_close(total.double(), slope, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_called_is_seen_through_its_weight():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
    task = sc.Task([torch.randn(5, 4, 8)], loss=lambda m, b: m(b).square().mean())
    (gates,) = gate_gradients(layer, {n: sc.LayerFacts() for n, _ in layer.named_parameters()}, task, "a test")
    assert gates["self_attn.out_proj.weight", 1].shape == (8, 5)
    assert gates["self_attn.out_proj.weight", 1].abs().sum() > 0


def test_parts_of_examples_are_added():
    """Windows: 3 examples of 4 windows each."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 5), nn.Linear(5, 1)

        def forward(self, x):
            return self.b(self.a(x.reshape(-1, 6, 2))).reshape(x.shape[0], -1)

    model = Windows()
    task = sc.Task([torch.randn(3, 24, 2)], loss=lambda m, b: m(b).mean())
    (gates,) = gate_gradients(model, targets_of(model), task, "a test")
    assert gates["b.weight", 1].shape == (5, 3)


def test_frozen_layers_too_and_nothing_is_left_behind():
    model = convnet()
    model.requires_grad_(requires_grad=False)
    task = sc.Task([torch.randn(2, 1, 8, 8).double()], loss=lambda m, b: m(b).mean())
    (gates,) = gate_gradients(model, targets_of(model), task, "a test")
    assert gates["3.weight", 1].abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 1), (5, 3, 4, 4), (3, 5, 16)),
        (nn.Conv2d(3, 8, 1), (3, 4, 4), (3, 1, 16)),
        (nn.Conv1d(3, 8, 1), (5, 3, 4), (3, 5, 4)),
        (nn.Linear(6, 2), (5, 6), (6, 5, 1)),
        (nn.Linear(6, 2), (5, 7, 6), (6, 5, 7)),
        (nn.Linear(6, 2), (6,), (6, 1, 1)),
    ],
)
def test_arranging(layer, shape, expected):
    assert by_channel(layer, torch.zeros(shape)).shape == expected


def test_readers():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.ConvTranspose2d(8, 2, 2))
    assert set(read_by(model, targets_of(model)).values()) == {("1.weight", 1), ("2.weight", 0)}
    with reader_inputs(read_by(model, targets_of(model))) as seen:
        model(torch.zeros(2, 4, 6, 6))
    assert [x.shape[1] for _, x in seen] == [4, 8]


def test_examples():
    assert examples_in((torch.zeros(5, 2), torch.zeros(5))) == 5
    assert examples_in({"ids": torch.zeros(3, 7)}) == 3
    assert examples_in(None) == 1


class Sequences(nn.Module):
    """Attention and a recurrent layer: their weights read channels where no hook sees it."""

    def __init__(self, kind):
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.inner = (
            nn.LSTM(8, 6, batch_first=True) if kind == "lstm" else nn.MultiheadAttention(8, 2, batch_first=True)
        )
        self.head = nn.Linear(6 if kind == "lstm" else 8, 3)

    def forward(self, x):
        x = self.first(x)
        x = self.inner(x)[0] if isinstance(self.inner, nn.LSTM) else self.inner(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


def gates_of(model, batches, loss):
    found = list(gate_gradients(model, targets_of(model), sc.Task(batches, loss=loss), "a test"))
    return {place: torch.cat([gates[place] for gates in found], 1) for place in found[0]}


@pytest.mark.parametrize("kind", ["lstm", "attention"])
def test_weights_inside_of_layers_know_every_example(kind):
    torch.manual_seed(3)
    model, x, y = Sequences(kind).eval(), torch.randn(6, 4, 5), torch.randint(0, 3, (6,))

    def loss(m, b):
        return cross_entropy(m(b[0]), b[1])

    whole = gates_of(model, [(x, y)], loss)
    for size in (1, 4):
        parts = gates_of(model, list(zip(x.split(size), y.split(size), strict=True)), loss)
        assert parts.keys() == whole.keys()
        for place, gates in whole.items():
            torch.testing.assert_close(parts[place], gates, rtol=1e-4, atol=1e-6)
    name = "inner.weight_hh_l0" if kind == "lstm" else "inner.out_proj.weight"
    assert float(whole[name, 1].std(1).min()) > 0
    weight = model.get_parameter(name)
    for n in range(6):
        (gradient,) = torch.autograd.grad(loss(model, (x[n : n + 1], y[n : n + 1])), weight)
        torch.testing.assert_close(whole[name, 1][:, n], (gradient * weight).sum(0).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("breaks", [False, True])
def test_losses_that_compare_examples_give_all_the_same(breaks):
    torch.manual_seed(3)
    model, x = Sequences("attention").eval(), torch.randn(6, 4, 5)

    def loss(m, b):
        out = m(b)
        if breaks and len(b) == 1:
            raise ValueError("nothing to compare")
        return (out @ out.t()).square().mean()

    gates = gates_of(model, [x], loss)["inner.out_proj.weight", 1]
    assert gates.shape == (8, 6)
    assert torch.equal(gates, gates[:, :1].expand(-1, 6))


@pytest.mark.parametrize("kind", ["lstm", "attention"])
@pytest.mark.parametrize("method", ["fisher", "taylor_map"])
def test_what_is_pruned_does_not_depend_on_the_size_of_batches(method, kind):
    torch.manual_seed(4)
    model, x, y = Sequences(kind).eval(), torch.randn(12, 4, 5), torch.randint(0, 3, (12,))
    kept = []
    for size in (1, 5, 12):
        task = sc.Task(list(zip(x.split(size), y.split(size), strict=True)), lambda m, b: cross_entropy(m(b[0]), b[1]))
        pruned = sc.prune(model, method, granularity="channel", sparsity=0.4, example_inputs=x[:1], task=task)
        kept.append([(group.name, group.kept) for group in pruned.report.groups])
    assert kept[0] == kept[1] == kept[2]


def test_examples_may_stand_second():
    """``nn.TransformerEncoderLayer`` takes ``[tokens, examples, width]`` unless it is told otherwise."""

    class Encoder(nn.Module):
        def __init__(self, first):
            super().__init__()
            torch.manual_seed(5)
            self.first, self.layer, self.head = (
                first,
                nn.TransformerEncoderLayer(8, 2, 12, batch_first=first),
                nn.Linear(8, 3),
            )

        def forward(self, x):
            out = self.layer(x if self.first else x.transpose(0, 1))
            return self.head(out.mean(1 if self.first else 0))

    torch.manual_seed(6)
    x, y = torch.randn(6, 4, 8), torch.randint(0, 3, (6,))
    one, other = (
        gates_of(Encoder(first).eval(), [(x, y)], lambda m, b: cross_entropy(m(b[0]), b[1])) for first in (True, False)
    )
    assert one.keys() == other.keys()
    for place, gates in one.items():
        torch.testing.assert_close(other[place], gates, rtol=1e-4, atol=1e-6)
