"""SmolLM2-135M: a Llama of 30 layers with grouped queries, and a reader for its 4-bit GGUF file."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PLAIN = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_BLOCKS = {0: (1, 4), 1: (1, 2), 3: (32, 20), 8: (32, 34)}  # type: weights and bytes of a block (F32, F16, Q4_1, Q8_0)


class RMSNorm(nn.Module):
    """``x / rms(x) * weight``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Attention(nn.Module):
    """Nine query heads in three groups, each with one key and value head; rotary places on interleaved pairs."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = turned(self.q(x).view(batch, length, self.heads, self.head_dim), cos, sin).transpose(1, 2)
        k = turned(self.k(x).view(batch, length, self.kv_heads, self.head_dim), cos, sin).transpose(1, 2)
        v = self.v(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        repeats = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs ``(0, 1), (2, 3), ...`` of the last axis of ``[batch, length, heads, head_dim]``."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(3)


class Layer(nn.Module):
    """Attention and SwiGLU."""

    def __init__(self, width: int, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(width), Attention(width, heads, kv_heads)
        self.ffn_norm = RMSNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin)
        y = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class SmolLM(nn.Module):
    """Token ids to logits; the output is the embedding."""

    def __init__(self, layers: int = 30, width: int = 576, hidden: int = 1536, vocabulary: int = 49152) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, hidden, 9, 3) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        rates = 100_000.0 ** (-torch.arange(0, 64, 2) / 64)
        angles = torch.arange(2048).unsqueeze(1) * rates
        self.register_buffer("cos", angles.cos().unsqueeze(1), persistent=False)  # [place, 1, pair]
        self.register_buffer("sin", angles.sin().unsqueeze(1), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, length = self.embedding(tokens), tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return self.head(self.norm(x))


def state_of(path: Path) -> dict[str, Tensor]:
    """The state dict of `SmolLM` from a GGUF file."""
    names = {"attn_q": "attn.q", "attn_k": "attn.k", "attn_v": "attn.v", "attn_output": "attn.out"}
    names |= {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}
    state = {}
    for name, tensor in read_gguf(path).items():
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            state[f"layers.{layer}.{names.get(part, part)}.weight"] = tensor
        elif name == "token_embd.weight":
            state |= {"embedding.weight": tensor, "head.weight": tensor}
        elif name == "output_norm.weight":
            state["norm.weight"] = tensor
    return state


def read_gguf(path: Path) -> dict[str, Tensor]:
    """Every tensor of a GGUF file as float32; of the quantised types, Q4_1 and Q8_0."""
    with path.open("rb") as file:
        magic, _, tensors, entries = struct.unpack("<4sIQQ", file.read(24))
        assert magic == b"GGUF"
        about = {_string(file): _value(file, _plain(file, 4)) for _ in range(entries)}
        infos = []
        for _ in range(tensors):
            name, dims = _string(file), _plain(file, 4)
            infos.append((name, [_plain(file, 10) for _ in range(dims)], _plain(file, 4), _plain(file, 10)))
        align = about.get("general.alignment", 32)
        start = -(-file.tell() // align) * align
        return {name: _tensor(file, start + offset, shape, kind) for name, shape, kind, offset in infos}


def _plain(file: BinaryIO, kind: int) -> Any:
    return struct.unpack(_PLAIN[kind], file.read(struct.calcsize(_PLAIN[kind])))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_plain(file, 10)).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return _string(file)
    if kind == 9:
        inner, count = _plain(file, 4), _plain(file, 10)
        return [_value(file, inner) for _ in range(count)]
    return _plain(file, kind)


def _tensor(file: BinaryIO, offset: int, shape: list[int], kind: int) -> Tensor:
    weights, nbytes = _BLOCKS[kind]
    count = int(np.prod(shape)) // weights
    file.seek(offset)
    raw = np.frombuffer(file.read(count * nbytes), np.uint8).reshape(count, nbytes)
    if kind in (0, 1):
        found = raw.reshape(-1).view("<f4" if kind == 0 else "<f2").astype(np.float32)
    elif kind == 8:
        found = raw[:, :2].copy().view("<f2").astype(np.float32) * raw[:, 2:].view(np.int8)
    else:
        scale, least = raw[:, :4].copy().view("<f2").astype(np.float32).T
        nibbles = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], 1)  # low nibbles first
        found = nibbles * scale[:, None] + least[:, None]
    return torch.from_numpy(np.ascontiguousarray(found)).view(shape[::-1])
