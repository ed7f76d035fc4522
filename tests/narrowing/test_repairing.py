"""Repair: layers that lost inputs give again what they gave, and nothing else changes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.activations import columns_of, matrix_of
from secateur.errors import BadCalibration, NeedsTask
from secateur.layerwise.chains import sound_chain
from secateur.narrowing.repairing import repair_


def network():
    torch.manual_seed(0)
    body = nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
    net = nn.Sequential(*body, nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():  # channels in pairs that carry nearly the same
        for layer in (net[0], net[2]):
            layer.weight[1::2] = layer.weight[::2] * 0.7
            layer.bias[1::2] = layer.bias[::2] * 0.7
    return net


X = torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def masks_of_every_other(net):
    coupling = sc.couple(net, X[:1])
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in net.named_parameters()}
    for group in coupling.groups()[:2]:
        for (name, dim), index in group.places.items():
            masks[name].index_fill_(dim, index[1::2].flatten(), False)
    return sc.Masks(masks)


def test_what_others_carry_is_recovered():
    net = network()
    masks = masks_of_every_other(net)
    masked = masks.apply_(copy.deepcopy(net))
    before = (masked(X) - net(X)).square().mean()
    names = repair_(masked, net, masks, sc.Task([X])).names
    after = (masked(X) - net(X)).square().mean()
    assert names == ["2.weight", "5.weight"]
    assert after < 1e-3 * before


def test_only_kept_weights_of_readers_change():
    net = network()
    masks = masks_of_every_other(net)
    dense, masked = copy.deepcopy(net), masks.apply_(copy.deepcopy(net))
    start = copy.deepcopy(masked.state_dict())
    repair_(masked, net, masks, sc.Task([X]))
    for name, value in masked.state_dict().items():
        assert not value[~masks[name]].any()
        assert torch.equal(value, start[name]) == (name not in ("2.weight", "2.bias", "5.weight", "5.bias"))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), dense.state_dict().values(), strict=True))
    assert not any(m._forward_pre_hooks for model in (net, masked) for m in model.modules())


@pytest.mark.parametrize("batches", [1, 2])
def test_few_examples_do_no_harm(batches):
    """Fewer places than features: least squares alone would fit them all and forget the rest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 200), nn.ReLU(), nn.Linear(200, 5))
    seen, other = torch.randn(120, 20), torch.randn(1000, 20)
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in net.named_parameters()}
    masks["0.weight"][:100], masks["0.bias"][:100], masks["2.weight"][:, :100] = False, False, False
    masked = sc.Masks(masks).apply_(copy.deepcopy(net))
    before = (masked(other) - net(other)).square().mean()
    assert repair_(masked, net, sc.Masks(masks), sc.Task(list(seen.chunk(batches)))).names == ["2.weight"]
    assert (masked(other) - net(other)).square().mean() < 0.7 * before


def test_a_few_huge_places_do_not_outvote_the_others():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 5))
    x = torch.randn(400, 20)
    x[::100] *= 300
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in net.named_parameters()}
    masks["0.weight"][:30], masks["0.bias"][:30], masks["2.weight"][:, :30] = False, False, False
    masked = sc.Masks(masks).apply_(copy.deepcopy(net))
    ordinary = torch.randn(500, 20)
    before = (masked(ordinary) - net(ordinary)).square().mean()
    repair_(masked, net, sc.Masks(masks), sc.Task(list(x.chunk(4))))
    assert (masked(ordinary) - net(ordinary)).square().mean() < 0.6 * before


def test_places_without_anything_do_not_make_the_others_huge():
    net = network()
    masks = masks_of_every_other(net)
    x = X.clone()
    x[16:] = 0
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.bias.zero_()
    masked = masks.apply_(copy.deepcopy(net))
    before = (masked(X) - net(X)).square().mean()
    repair_(masked, net, masks, sc.Task(list(x.split(4))))
    assert (masked(X) - net(X)).square().mean() < 0.3 * before


def test_labels_do_not_matter():
    net, found = network(), []
    masks = masks_of_every_other(net)
    for labels in (torch.zeros(64), torch.ones(64)):
        masked = masks.apply_(copy.deepcopy(net))
        repair_(masked, net, masks, sc.Task([(X, labels)]))
        found.append(masked[5].weight.detach().clone())
    assert torch.equal(*found)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.back = nn.Linear(6, 24), nn.Linear(24, 6)

    def forward(self, x):
        return x + self.back(torch.relu(self.wide(x)))


def test_block_by_block_is_the_same_as_running_the_whole_network_for_each_layer(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), *(Block() for _ in range(4)), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in net.named_parameters()}
    for k in range(1, 5):
        for name, dim in (("wide.weight", 0), ("wide.bias", 0), ("back.weight", 1)):
            masks[f"{k}.{name}"].index_fill_(dim, torch.arange(k, k + 12), False)
    for name, dim in (("5.weight", 0), ("5.bias", 0), ("7.weight", 1)):
        masks[name].index_fill_(dim, torch.arange(4), False)
    task, found, blocks_run = sc.Task(list(torch.randn(90, 5).split(30))), [], []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr("secateur.narrowing.repairing.sound_chain", lambda *_: [])
        masked = sc.Masks(masks).apply_(copy.deepcopy(net))
        handle = masked[1].register_forward_hook(lambda *_: blocks_run.append(1))
        names = repair_(masked, net, sc.Masks(masks), task).names
        handle.remove()
        assert names == [*(f"{k}.back.weight" for k in range(1, 5)), "7.weight"]
        found.append((masked.state_dict(), len(blocks_run)))
        blocks_run.clear()
    (by_block, few), (whole, many) = found
    assert all(torch.equal(by_block[name], whole[name]) for name in by_block)
    assert few < many


class Between(nn.Module):
    """Blocks with code between them that no tensor shows."""

    def __init__(self, how):
        super().__init__()
        self.how, self.blocks = how, nn.ModuleList([Contextual() for _ in range(3)])

    def forward(self, x):
        for block in self.blocks:
            block.context = x.mean() if self.how == "a state" else 1.0
            with torch.autocast("cpu", torch.bfloat16, enabled=self.how == "autocast"):
                x = block(x, np.ones(2)) if self.how == "an array" else block(x)
            if self.how == "in place":
                x += 3
        return x


class Contextual(Block):
    def forward(self, x, _array=None):
        return super().forward(x) * self.context


@pytest.mark.parametrize("how", ["in place", "a state", "an array", "autocast", ""])
def test_code_between_blocks_is_heeded(how):
    torch.manual_seed(0)
    chain = sound_chain(Between(how).eval(), list(torch.randn(3, 30, 6)))
    assert chain == ([] if how else ["blocks.0", "blocks.1", "blocks.2"])


def test_batches_that_take_another_way():
    class Ways(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Linear(6, 24), *(nn.Sequential(nn.Linear(24, 6), nn.ReLU()) for _ in "ab")

        def forward(self, x, way):
            return (self.a if way == 0 else self.b)(self.body(x).relu())

    torch.manual_seed(0)
    net = Ways()
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in net.named_parameters()}
    masks["body.weight"][:12], masks["body.bias"][:12] = False, False
    masks["a.0.weight"][:, :12], masks["b.0.weight"][:, :12] = False, False
    batches = [{"x": torch.randn(40, 6), "way": k % 2, "y": 0} for k in range(8)]

    def loss(model, batch):
        batch.pop("y")
        return model(**batch).square().mean()

    masked = sc.Masks(masks).apply_(copy.deepcopy(net))
    assert repair_(masked, net, sc.Masks(masks), sc.Task(batches, loss=loss)).names == ["a.0.weight", "b.0.weight"]
    assert all("y" in batch for batch in batches)
    sc.prune(net, "layer_obs", sparsity=0.5, task=sc.Task(batches, loss=loss))


def test_nan_is_refused_and_one_example_says_nothing():
    net = network()
    masks = masks_of_every_other(net)
    bad = X.clone()
    bad[3] = float("nan")
    with pytest.raises(BadCalibration, match="'2' sees NaN"):
        repair_(masks.apply_(copy.deepcopy(net)), net, masks, sc.Task([X, bad]))
    assert repair_(masks.apply_(copy.deepcopy(net)), net, masks, sc.Task([X[:1]])).names == []


def test_progress():
    net, calls = network(), []
    masks = masks_of_every_other(net)
    repair_(masks.apply_(copy.deepcopy(net)), net, masks, sc.Task([X]), on_progress=lambda *args: calls.append(args))
    assert calls == [(0, 2, "2.weight"), (1, 2, "5.weight")]


def test_in_one_call():
    net = network()
    task = sc.Task([X])
    plain, repaired = (
        sc.prune(
            net,
            "magnitude",
            sparsity=0.5,
            scope="layer",
            granularity="channel",
            example_inputs=X[:1],
            task=task,
            repair=r,
        )
        for r in (False, True)
    )
    apart = [float((p.model(X) - net(X)).detach().square().mean()) for p in (plain, repaired)]
    assert apart[1] < 0.7 * apart[0]
    assert plain.masks == repaired.masks
    with pytest.raises(NeedsTask, match="repair=True"):
        sc.prune(net, sparsity=0.5, granularity="channel", example_inputs=X[:1], repair=True)


class ByHand(nn.Module):
    """`nn.MultiheadAttention` with its out-projection called as a layer."""

    def __init__(self, attention):
        super().__init__()
        self.inward, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.inward.weight, self.inward.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out.load_state_dict(attention.out_proj.state_dict())

    def forward(self, x):
        q, k, v = (part.unflatten(2, (4, 4)).transpose(1, 2) for part in self.inward(x).chunk(3, 2))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Attending(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_the_out_projection_of_attention_is_refitted_as_any_other():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    attention.in_proj_bias.data.normal_()
    theirs, ours = Attending(attention).eval(), ByHand(attention).eval()
    heads = torch.arange(16) < 8
    task = sc.Task(list(torch.randn(64, 5, 16).split(16)))
    found = []
    for net, inward, out in ((theirs, "attention.in_proj_", "attention.out_proj."), (ours, "inward.", "out.")):
        masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
        masks[f"{inward}weight"] &= heads.repeat(3)[:, None]
        masks[f"{inward}bias"] &= heads.repeat(3)
        masks[f"{out}weight"] &= heads
        masks = sc.Masks(masks)
        masked = masks.apply_(copy.deepcopy(net))
        assert repair_(masked, net, masks, task) == ([f"{out}weight"], [])
        found.append(masked.state_dict()[f"{out}weight"])
        assert not torch.allclose(found[-1], net.state_dict()[f"{out}weight"] * heads, atol=1e-3)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 5, 3, stride=2, dilation=2, padding=1), (2, 3, 11)),
        (nn.Conv2d(3, 5, (3, 2), stride=(2, 1)), (2, 3, 11, 9)),
        (nn.Conv2d(3, 5, 3, padding="same", padding_mode="circular"), (2, 3, 6, 7)),
        (nn.Conv2d(3, 5, 3), (3, 6, 7)),
        (nn.Conv3d(2, 4, 2), (2, 2, 4, 5, 6)),
        (nn.Linear(4, 3), (2, 7, 4)),
    ],
)
def test_columns_and_matrix_are_the_layer(layer, shape):
    x = torch.randn(shape)
    found = matrix_of(layer) @ columns_of(layer, x) + layer.bias[:, None]
    y = layer(x)
    if not isinstance(layer, nn.Linear):
        y = (y if y.dim() == layer.weight.dim() else y[None]).transpose(0, 1).flatten(1)
    picked = torch.tensor([3, 5])
    assert torch.equal(columns_of(layer, x, lambda count: picked), columns_of(layer, x)[:, picked])
    torch.testing.assert_close(
        found, y if not isinstance(layer, nn.Linear) else y.reshape(-1, 3).t(), rtol=1e-4, atol=1e-5
    )


def test_columns_of_a_transposed_convolution():
    layer, x = nn.ConvTranspose2d(3, 2, 2, stride=2, bias=False), torch.randn(4, 3, 5, 5)
    found = (matrix_of(layer) @ columns_of(layer, x)).reshape(
        2, 2, 2, 4, 5, 5
    )  # [out, taps, batch, places]: nothing overlaps
    torch.testing.assert_close(found.permute(3, 0, 4, 1, 5, 2).reshape(4, 2, 10, 10), layer(x), rtol=1e-4, atol=1e-5)
