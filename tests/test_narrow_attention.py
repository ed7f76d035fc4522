"""`NarrowAttention` is `nn.MultiheadAttention` whose removed heads are zeros, under every option."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

from secateur.cutting import cut_
from secateur.narrow_attention import NarrowAttention
from secateur.structure import Structure

WIDTH, HEADS, KEPT = 16, 4, (1, 2)
ROWS = [r for head in KEPT for r in range(4 * head, 4 * head + 4)]


def pair(**options):
    """An attention layer with heads 0 and 3 zeroed, and the layer cut to heads 1 and 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = nn.MultiheadAttention(WIDTH, HEADS, **options).eval()
        for parameter in whole.parameters():
            nn.init.normal_(parameter, std=0.3)
    own = dict(whole.named_parameters())
    kept = {"out_proj.weight": {1: tuple(ROWS)}}
    for name in ("in_proj_weight", "in_proj_bias"):
        kept[name] = {0: tuple(r + WIDTH * k for k in range(3) for r in ROWS)}
    kept |= {f"{side}_proj_weight": {0: tuple(ROWS)} for side in "qkv"}
    kept |= {f"bias_{side}": {2: tuple(ROWS)} for side in "kv"}
    kept = {name: dims for name, dims in kept.items() if name in own}
    structure = Structure(shapes={n: tuple(own[n].shape) for n in kept}, kept=kept, sizes={})
    thin = copy.deepcopy(whole)
    cut_(thin, structure)
    with torch.no_grad():
        for name in kept:
            own[name].mul_(structure.mask(name))
    return whole, thin


def call(layer, *, first, named, batched=True, sizes=(WIDTH, WIDTH)):
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(2, n, width, generator=generator) for n, width in ((5, WIDTH), (6, sizes[0]), (6, sizes[1]))]
    if not batched:
        tensors = [t[0] for t in tensors]
    elif not first:
        tensors = [t.transpose(0, 1) for t in tensors]
    return layer(*tensors, **named)


MASKS = {
    "none": {},
    "bool": {"attn_mask": torch.arange(6).expand(5, 6) > torch.arange(5)[:, None]},
    "float": {"attn_mask": torch.linspace(-2, 2, 30).view(5, 6)},
    "padding": {"key_padding_mask": torch.tensor([[False] * 4 + [True] * 2, [False] * 6])},
    "both": {
        "attn_mask": torch.arange(6).expand(5, 6) > torch.arange(5)[:, None],
        "key_padding_mask": torch.tensor([[False] * 4 + [True] * 2, [False] * 6]),
    },
    "causal": {"attn_mask": torch.arange(6).expand(5, 6) > torch.arange(5)[:, None], "is_causal": True},
}
LAYERS = [
    {},
    {"bias": False},
    {"kdim": 12, "vdim": 10},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "kdim": 12, "vdim": 12},
]


@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_same_results(options, mask):
    for first, weights in product((True, False), (True, False)):
        whole, thin = pair(batch_first=first, **options)
        assert type(thin) is NarrowAttention
        assert (thin.num_heads, thin.head_dim, thin.embed_dim) == (2, 4, WIDTH)
        sizes = (options.get("kdim", WIDTH), options.get("vdim", WIDTH))
        setting = {"first": first, "sizes": sizes, "named": MASKS[mask] | {"need_weights": weights}}
        (expected, _), (found, attention) = call(whole, **setting), call(thin, **setting)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (attention is None) == (not weights)


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_weights_are_those_of_the_heads_that_stay(mask):
    whole, thin = pair(batch_first=True)
    setting = {"first": True, "named": MASKS[mask] | {"average_attn_weights": False}}
    expected, found = call(whole, **setting)[1], call(thin, **setting)[1]
    torch.testing.assert_close(found, expected[:, list(KEPT)])
    averaged = call(thin, first=True, named=MASKS[mask])[1]
    torch.testing.assert_close(averaged, expected[:, list(KEPT)].mean(1))


def test_inputs_without_a_batch():
    whole, thin = pair()
    for named in ({}, {"need_weights": False}, MASKS["bool"], {"average_attn_weights": False}):
        setting = {"first": False, "batched": False, "named": named}
        (expected, weights), (found, ours) = call(whole, **setting), call(thin, **setting)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (weights is None) == (ours is None)
        assert ours is None or ours.dim() == weights.dim()


def test_a_causal_hint_needs_a_mask_as_in_pytorch():
    whole, thin = pair(batch_first=True)
    for layer in (whole, thin):
        with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
            call(layer, first=True, named={"is_causal": True})


def test_dropout_acts_in_training_only():
    _, thin = pair(batch_first=True, dropout=0.5)
    x = torch.ones(1, 3, WIDTH)
    assert torch.equal(thin(x, x, x)[0], thin(x, x, x)[0])
    with torch.random.fork_rng(devices=[]):
        thin.train()
        assert not torch.equal(thin(x, x, x)[0], thin(x, x, x)[0])


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_gradients_reach_every_parameter(options):
    _, thin = pair(batch_first=True, **options)
    call(thin.train(), first=True, sizes=(options.get("kdim", WIDTH), options.get("vdim", WIDTH)), named={})[
        0
    ].sum().backward()
    assert [n for n, p in thin.named_parameters() if p.grad is None] == []
