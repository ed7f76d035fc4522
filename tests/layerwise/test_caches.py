"""Layer-wise surgery on blocks that are given a cache: every run of a block finds it as it was."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.layerwise.chains import sound_chain
from secateur.renewing import renewed


class Cache:
    """Keys and values by layer, as transformers keeps them."""

    def __init__(self):
        self.layers = {}

    def update(self, at, states):
        self.layers[at] = torch.cat([*self.layers.get(at, ()), states], 1)[None]
        return self.layers[at][0]


class Block(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.at, self.norm, self.qkv, self.out = at, nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x, cache=None, extra=None):
        q, k, v = self.qkv(self.norm(x)).chunk(3, 2)
        if cache is not None:
            k, v = cache.update(self.at, torch.cat([k, v], 2)).chunk(2, 2)
        if extra is not None:
            extra.append(k)
            k = sum(extra)
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))


class Reader(nn.Module):
    def __init__(self, cached):
        super().__init__()
        torch.manual_seed(0)
        self.cached, self.blocks = cached, nn.ModuleList(Block(at) for at in range(3))

    def forward(self, x, cache=None):
        cache = cache or Cache() if self.cached else None
        for block in self.blocks:
            x = block(x, cache=cache)
        return x


def batches():
    return list(torch.randn(3, 4, 5, 8, generator=torch.Generator().manual_seed(1)))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


HOW = [{}, {"order": "blocks"}, {"targets": "dense", "scope": "layer"}, {"tune": 3, "rate": 1e-2}, {"blocks": True}]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_cache_changes_nothing(how):
    assert sound_chain(Reader(cached=True), batches()) == ["blocks.0", "blocks.1", "blocks.2"]
    how = how | ({"blocks": ("blocks.0", "blocks.1", "blocks.2")} if "blocks" in how else {})
    with_it, without = (
        sc.prune(Reader(cached=cached), "layer_obs", sparsity=0.5, task=sc.Task(batches()), **how).model
        for cached in (True, False)
    )
    assert same(with_it, without)


def test_a_cache_of_the_batches_is_left_as_it_was():
    own = [{"x": x, "cache": Cache()} for x in batches()]
    with_it = sc.prune(Reader(cached=True), "layer_obs", sparsity=0.5, task=sc.Task(own), tune=2).model
    assert same(
        with_it, sc.prune(Reader(cached=False), "layer_obs", sparsity=0.5, task=sc.Task(batches()), tune=2).model
    )
    assert not any(batch["cache"].layers for batch in own)


def test_blocks_that_hand_each_other_something_aside_are_run_whole():
    class Aside(Reader):
        def forward(self, x):
            extra = []
            for block in self.blocks:
                x = block(x, extra=extra)
            return x

    assert sound_chain(Aside(cached=False), batches()) == []
    assert sc.prune(Aside(cached=False), "layer_obs", sparsity=0.5, task=sc.Task(batches())).masks.sparsity == 0.5


def test_what_lasts_is_the_same_and_what_a_run_writes_into_is_new():
    model, tensor = nn.Linear(2, 2), torch.zeros(2)

    class Held:
        def __init__(self):
            self.inside, self.weight, self.model = tensor, model.weight, model

    held, waiting = Held(), iter([1])  # no copy can be made of what is running
    given = ((tensor, [held, None]), {"same": held, "text": "x", "waits": (n for n in waiting)})
    (one, (two, nothing)), named = renewed(given, model)
    assert one is tensor
    assert two is named["same"] is not held
    assert two.inside is not tensor
    assert two.weight is model.weight
    assert two.model is model
    assert (nothing, named["text"]) == (None, "x")
    assert named["waits"] is given[1]["waits"]


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_language_models_of_transformers_are_tuned_as_they_come(kind):
    transformers = pytest.importorskip("transformers")
    small = {
        "Llama": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0},
    }[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=32, **small)
    model = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[0, :3] = 0
    tokens = [{"input_ids": torch.randint(0, 32, (3, 8)), "attention_mask": mask} for _ in range(2)]
    found = [
        sc.prune(model, "layer_obs", sparsity=0.5, task=sc.Task([one | more for one in tokens]), tune=2, rate=1e-2)
        for more in ({}, {"use_cache": False})
    ]
    assert len(found[0].report.settings["blocks"]) == 2
    assert same(found[0].model, found[1].model)
