"""stories260k: a Llama of 260,032 parameters trained on TinyStories (karpathy/tinyllamas)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.models.smollm import Layer, RMSNorm, SmolLM


class Stories(SmolLM):
    """Five layers, 64 wide, 8 query heads, 4 key and value heads, 512 tokens."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(512, 64)
        self.layers = nn.ModuleList(Layer(64, 172, 8, 4) for _ in range(5))
        self.norm = RMSNorm(64)
        self.head = nn.Linear(64, 512, bias=False)
        self.head.weight = self.embedding.weight
        angles = torch.arange(1024).unsqueeze(1) * 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
        self.register_buffer("cos", angles.cos().unsqueeze(1), persistent=False)
        self.register_buffer("sin", angles.sin().unsqueeze(1), persistent=False)


def stories_state(path: Path) -> dict[str, Tensor]:
    """The checkpoint under the names of `Stories`."""
    names = {"attention.wq": "attn.q", "attention.wk": "attn.k", "attention.wv": "attn.v", "attention.wo": "attn.out"}
    names |= {"feed_forward.w1": "gate", "feed_forward.w3": "up", "feed_forward.w2": "down"}
    names |= {"attention_norm": "attn_norm", "tok_embeddings": "embedding"}
    state = {}
    for name, tensor in torch.load(path, weights_only=True).items():
        for old, new in names.items():
            name = name.replace(old, new)  # noqa: PLW2901
        state[name] = tensor.float()
    return state | {"head.weight": state["embedding.weight"]}
