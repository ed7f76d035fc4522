"""Structural tricks of sequence models and of plumbing, one small module each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SEQUENCES", "Answer"]


class Block(nn.Module):
    """A pre-norm transformer block around some attention, with a gated MLP."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(6, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = attention
        self.up, self.gate, self.down, self.head = (
            nn.Linear(16, 24),
            nn.Linear(16, 24),
            nn.Linear(24, 16),
            nn.Linear(16, 6),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        h = self.norm2(x)
        return self.head(x + self.down(F.silu(self.gate(h)) * self.up(h)))


class FusedAttention(nn.Module):
    """nanoGPT: one matrix for queries, keys and values; sizes come from the input and from attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.n_head, self.n_embd = 4, 16

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).split(self.n_embd, 2)
        q, k, v = (y.view(b, t, self.n_head, -1).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class VisionAttention(nn.Module):
    """timm: qkv as one reshape to ``[3, batch, heads, tokens, width]``, products by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = 4, 4, 0.5
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


class HandWritten(nn.Module):
    """Separate projections, a causal buffer, a scale from the width of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 2, 8
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=bias) for bias in (True, False, True, True))
        self.register_buffer("causal", torch.ones(32, 32).tril()[None, None])

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.width).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.width)
        scores = scores.masked_fill(self.causal[:, :, :t, :t] == 0, float("-inf"))
        y = torch.matmul(F.softmax(scores, -1), v).permute(0, 2, 1, 3).contiguous()
        return self.o(y.view(x.shape[0], t, self.heads * self.width))


class GroupedQuery(nn.Module):
    """Llama: fewer keys and values than queries, rotary positions."""

    def __init__(self, how: str, kv: int = 2) -> None:
        super().__init__()
        self.heads, self.kv, self.width, self.how = 4, kv, 4, how
        self.q, self.k = nn.Linear(16, 16, bias=False), nn.Linear(16, kv * 4, bias=False)
        self.v, self.o = nn.Linear(16, kv * 4, bias=False), nn.Linear(16, 16, bias=False)
        angle = torch.outer(torch.arange(32.0), 1 / 100 ** (torch.arange(0, 4, 2) / 4))
        self.register_buffer("cos", torch.cat([angle, angle], 1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angle, angle], 1).sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        t = x.shape[2]
        one, two = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * self.cos[:t] + torch.cat([-two, one], -1) * self.sin[:t]

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.rotate(self.q(x).view(b, t, -1, self.width).transpose(1, 2))
        k = self.rotate(self.k(x).view(b, t, -1, self.width).transpose(1, 2))
        v = self.v(x).view(b, t, -1, self.width).transpose(1, 2)
        if self.how == "enable_gqa":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            times = self.heads // self.kv
            if self.how == "repeat_interleave":
                k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
            else:  # as in transformers
                k, v = (y[:, :, None].expand(b, y.shape[1], times, t, self.width) for y in (k, v))
                k, v = (y.reshape(b, -1, t, self.width) for y in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, t, -1))


class Multihead(nn.Module):
    """`nn.MultiheadAttention` in all of its forms."""

    def __init__(self, *, mask: str = "", weights: bool = False, width: int = 16, **options: Any) -> None:
        super().__init__()
        self.mask, self.weights, self.first = mask, weights, options.get("batch_first", False)
        self.context = nn.Linear(16, width) if width != 16 else nn.Identity()
        sizes = {"kdim": width, "vdim": width} if width != 16 else {}
        self.attention = nn.MultiheadAttention(16, 4, **sizes, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        b, t = (x.shape[0], x.shape[1]) if self.first else (x.shape[1], x.shape[0])
        named: dict[str, Any] = {"need_weights": self.weights}
        if "causal" in self.mask:
            named["attn_mask"] = torch.ones(t, t, dtype=torch.bool).triu(1)
        if "padding" in self.mask:
            named["key_padding_mask"] = (torch.arange(t) >= t - 1).expand(b, t)
        context = self.context(x)
        y = self.attention(x, context, context, **named)[0]
        return y if self.first else y.transpose(0, 1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.embedding(x))))


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.again = self.shared

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.shared(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.again(x)))


@dataclass
class Answer:
    mean: Tensor
    spread: Tensor | None = None


class ManyEnds(nn.Module):
    """Two inputs, keyword arguments, and a dict with a dataclass inside as output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(6, 10), nn.Linear(4, 10), nn.Linear(20, 8)
        self.mean, self.spread = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, image: Tensor, *, text: Tensor) -> dict[str, Any]:
        h = torch.relu(self.mix(torch.cat([self.a(image), self.b(text)], -1).relu()))
        return {"answer": Answer(self.mean(h), self.spread(h).exp()), "both": (image.sum(-1), [image])}


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pair, self.head = nn.Linear(6, 8), nn.Linear(6, 7), nn.Bilinear(8, 7, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.pair(torch.relu(self.a(x)), torch.relu(self.b(x)))))


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 10) * 0.3), nn.Parameter(torch.randn(10, 4) * 0.3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bti,ih->bth", x, self.first).relu()
        return self.head(torch.einsum("bth,ho->bto", h, self.second).relu())


class Scan(nn.Module):
    """Mamba in small: input-dependent state space, depthwise convolution, a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.state, self.rank = 12, 4, 3
        self.into, self.conv = nn.Linear(6, 24, bias=False), nn.Conv1d(12, 12, 3, padding=2, groups=12)
        self.select, self.step = nn.Linear(12, 3 + 8, bias=False), nn.Linear(3, 12)
        self.log_a, self.d = nn.Parameter(torch.randn(12, 4) * 0.1), nn.Parameter(torch.ones(12))
        self.out = nn.Linear(12, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.into(x).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        rank, b, c = self.select(u).split([self.rank, self.state, self.state], -1)
        delta = F.softplus(self.step(rank))
        decay = torch.exp(-delta[..., None] * self.log_a.exp())
        drive = (delta * u)[..., None] * b[:, :, None]
        h, ys = torch.zeros(x.shape[0], self.inner, self.state), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + drive[:, t]
            ys.append((h * c[:, t, None]).sum(-1))
        return self.out((torch.stack(ys, 1) + u * self.d) * F.silu(gate))


class Recurrent(nn.Module):
    def __init__(self, cell: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.stem, self.cell, self.head = nn.Linear(6, 8), cell, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(torch.relu(self.stem(x)))[0])


class Cell(nn.Module):
    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.stem, self.cell, self.head = nn.Linear(6, 8), cell, nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for t in range(x.shape[1]):
            state = self.cell(torch.relu(self.stem(x[:, t])), state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Words(nn.Module):
    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.hidden, self.head = table, nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.table(x))))


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale, self.up, self.head = (
            nn.Linear(6, 8),
            nn.Parameter(torch.ones(8)),
            nn.Linear(8, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return self.head(F.gelu(self.up(x)))


SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "attention_fused": lambda: Block(FusedAttention()),
    "attention_vision": lambda: Block(VisionAttention()),
    "attention_by_hand": lambda: Block(HandWritten()),
    "grouped_query_repeat": lambda: Block(GroupedQuery("repeat_interleave")),
    "grouped_query_expand": lambda: Block(GroupedQuery("expand")),
    "grouped_query_enabled": lambda: Block(GroupedQuery("enable_gqa")),
    "multi_query": lambda: Block(GroupedQuery("expand", kv=1)),
    "multihead": lambda: Block(Multihead(batch_first=True)),
    "multihead_weights": lambda: Block(Multihead(batch_first=True, weights=True)),
    "multihead_sequence_first": lambda: Block(Multihead(bias=False)),
    "multihead_separate": lambda: Block(Multihead(batch_first=True, width=12)),
    "multihead_masks": lambda: Block(Multihead(batch_first=True, mask="causal padding")),
    "multihead_extras": lambda: Block(Multihead(batch_first=True, add_bias_kv=True)),
    "encoder_layer": lambda: Block(nn.TransformerEncoderLayer(16, 4, 20, 0.0, batch_first=True)),
    "reused": Reused,
    "einsum": Einsum,
    "bilinear": Bilinear,
    "scan": Scan,
    "rms_norm": RMSNorm,
    "lstm": lambda: Recurrent(nn.LSTM(8, 10, batch_first=True), 10),
    "lstm_deep": lambda: Recurrent(nn.LSTM(8, 10, 2, bidirectional=True, batch_first=True), 20),
    "lstm_projected": lambda: Recurrent(nn.LSTM(8, 10, 2, proj_size=6, batch_first=True), 6),
    "gru": lambda: Recurrent(nn.GRU(8, 10, bidirectional=True, batch_first=True), 20),
    "rnn": lambda: Recurrent(nn.RNN(8, 10, 2, batch_first=True, nonlinearity="relu"), 10),
    "lstm_cell": lambda: Cell(nn.LSTMCell(8, 10)),
    "gru_cell": lambda: Cell(nn.GRUCell(8, 10)),
    "rnn_cell": lambda: Cell(nn.RNNCell(8, 10)),
}
WORDS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "embedding": lambda: Words(nn.Embedding(12, 8, padding_idx=0)),
    "embedding_bag": lambda: Words(nn.EmbeddingBag(12, 8)),
}
