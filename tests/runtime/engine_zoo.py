"""Small networks that between them use every operation of the engine, with examples."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

__all__ = ["CACHED", "NETS", "Decoder", "Masked", "apart", "example", "sparse_"]


def example(said):
    return torch.randn(said, generator=torch.Generator().manual_seed(3)) if isinstance(said, tuple) else said


def apart(found, expected):
    """The largest difference, as a share of an expected value plus the largest one; infinite for NaN and other shapes."""
    pairs = zip(*(tree_leaves(list(y) if isinstance(y, tuple) else y) for y in (found, expected)), strict=True)
    return max(_apart(torch.as_tensor(a), b.detach()) for a, b in pairs)


def _apart(a, b):
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return float("inf")
    shares = (a - b).abs() / (b.abs() + b.abs().max())
    return float(shares.where(a != b, 0.0).nan_to_num(nan=float("inf")).max())


def sparse_(model, sparsity=0.6, height=1, seed=0):
    """Zero a random part of every matrix; in place."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.dim() > 1:
            rows = -(-p.shape[0] // height)
            keep = torch.rand(rows, p[0].numel(), generator=generator) >= sparsity
            p.data *= keep.repeat_interleave(height, 0)[: p.shape[0]].view(p.shape)
    return model.eval()


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Conv2d(6, 16, 3, padding=1), nn.Conv2d(16, 6, 1)
        self.f, self.g = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x):
        y = F.hardswish(self.a(x))
        z = torch.sigmoid(self.g(F.silu(self.f(y.mean((2, 3), keepdim=True)))))
        return x + self.o(y * z)


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(11, 4, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        y = torch.cat([x, F.relu(self.a(x))], 1)
        u, v = y.split([6, 5], 1)
        return F.relu(self.b(y) + self.c(u)), v * 2 - 1


class Next(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.s, self.d = nn.Conv2d(6, d, 4, stride=4), nn.Conv2d(d, d, 7, padding=3, groups=d)
        self.n, self.u, self.w, self.g = (
            nn.LayerNorm(d),
            nn.Linear(d, 4 * d),
            nn.Linear(4 * d, d),
            nn.Parameter(torch.randn(d)),
        )

    def forward(self, x):
        x = self.s(x)
        y = self.w(F.gelu(self.u(self.n(self.d(x).permute(0, 2, 3, 1))))) * self.g
        return x + y.permute(0, 3, 1, 2)


class Reader(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.e, self.l = nn.Embedding(50, d), nn.TransformerEncoderLayer(d, 4, 64, batch_first=True, dropout=0.0)
        self.h = nn.Linear(d, 5)

    def forward(self, ids):
        return self.h(self.l(self.e(ids)).mean(1))


class Decoder(nn.Module):
    """A Llama of one layer: RMS norm, rotary embedding, grouped-query attention, gated hidden layer, tied output."""

    def __init__(self, d=32):
        super().__init__()
        self.e, self.n = nn.Embedding(50, d), nn.RMSNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, n, bias=False) for n in (d, d // 2, d // 2, d))
        self.g, self.u, self.w = (
            nn.Linear(d, 64, bias=False),
            nn.Linear(d, 64, bias=False),
            nn.Linear(64, d, bias=False),
        )
        angles = torch.outer(torch.arange(64).float(), 10000 ** (-torch.arange(0, 4) / 4.0))
        self.register_buffer("c", angles.cos())
        self.register_buffer("s", angles.sin())

    def turned(self, x, positions):
        c, s = self.c[positions][:, None], self.s[positions][:, None]
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)

    def forward(self, ids, positions):
        x = self.e(ids)
        b, t, d = x.shape
        y = self.n(x)
        q, k, v = (m(y).view(b, t, -1, 8).transpose(1, 2) for m in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(
            self.turned(q, positions), self.turned(k, positions), v, is_causal=True, enable_gqa=True
        )
        x = x + self.o(a.transpose(1, 2).reshape(b, t, d))
        y = self.n(x)
        return F.linear(x + self.w(F.silu(self.g(y)) * self.u(y)), self.e.weight)


class Recurrent(nn.Module):
    def __init__(self, kind, **how):
        super().__init__()
        self.e, self.r = nn.Embedding(30, 12), kind(12, 10, batch_first=True, **how)
        self.h = nn.Linear(20 if how.get("bidirectional") else 10, 3)

    def forward(self, ids):
        out, _ = self.r(self.e(ids))
        return self.h(out[:, -1]), out


class Masked(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.q, self.k = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x, keep):
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 4
        scores = scores.masked_fill(keep[:, None] == 0, float("-inf")).softmax(-1)
        seen = F.scaled_dot_product_attention(x, x, x, attn_mask=(keep > 0)[:, None].expand(-1, x.shape[1], -1))
        return scores @ x + seen + torch.where(x > 0, x, -x) ** 2 + torch.rsqrt(x.abs() + 1)


class Strange(nn.Module):
    """`cumsum` is not among the engine's operations."""

    def __init__(self):
        super().__init__()
        self.c, self.d = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.d(torch.cumsum(self.c(x), 1))


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x):
        y = self.c(x)
        y[:, :4] += 1
        y[:, 2:6].relu_()
        return y.add_(1)


S = nn.Sequential
PLANES = (2, 6, 13, 11)
NETS = {
    "conv": (lambda: S(nn.Conv2d(6, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU()), PLANES),
    "valid": (lambda: S(nn.Conv2d(6, 9, 3), nn.Conv2d(9, 5, 3, padding=2), nn.BatchNorm2d(5)), PLANES),
    "strided": (lambda: S(nn.Conv2d(6, 9, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(9, 8, 5, stride=3, padding=2)), PLANES),
    "pointwise strided": (lambda: S(nn.Conv2d(6, 9, 1, stride=2), nn.Mish()), PLANES),
    "dilated": (lambda: S(nn.Conv2d(6, 9, 3, dilation=2, padding=2), nn.Conv2d(9, 8, (3, 1), padding=(1, 0), stride=(1, 2))), PLANES),
    "grouped": (lambda: S(nn.Conv2d(6, 12, 3, groups=3, padding=1), nn.Hardswish(), nn.ChannelShuffle(3)), PLANES),
    "depthwise": (
        lambda: S(nn.Conv2d(6, 6, 3, groups=6, padding=1), nn.ReLU6(), nn.Conv2d(6, 6, 5, groups=6, padding=2, stride=2), nn.Conv2d(6, 6, 3, groups=6, stride=3)),
        PLANES,
    ),
    "transposed": (lambda: S(nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1), nn.InstanceNorm2d(5), nn.ReLU()), PLANES),
    "transposed grouped": (lambda: S(nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1, groups=2), nn.BatchNorm2d(4), nn.Tanh()), PLANES),
    "conv1d": (
        lambda: S(nn.Conv1d(6, 8, 5, padding=2), nn.GELU(), nn.Conv1d(8, 8, 3, stride=2, padding=1), nn.BatchNorm1d(8), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)),
        (3, 6, 30),
    ),
    "depthwise 1d": (lambda: S(nn.Conv1d(6, 6, 5, padding=2, groups=6), nn.Conv1d(6, 6, 4, stride=2, groups=6, padding=1)), (3, 6, 30)),
    "pools": (lambda: S(nn.Conv2d(6, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(2)), PLANES),
    "reflected": (lambda: S(nn.ReflectionPad2d(2), nn.Conv2d(6, 7, 5), nn.GroupNorm(7, 7), nn.PReLU(7)), PLANES),
    "padded": (lambda: S(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(6, 7, 3, stride=2), nn.LeakyReLU(0.1)), PLANES),
    "enlarged": (lambda: S(nn.Conv2d(6, 4, 1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"), nn.PixelShuffle(2)), PLANES),
    "squeezed": (Squeezed, PLANES),
    "squeezed, one image": (Squeezed, (1, *PLANES[1:])),
    "joined": (Joined, PLANES),
    "convnext": (Next, (2, 6, 32, 40)),
    "encoder": (Reader, torch.randint(0, 50, (2, 17), generator=torch.Generator().manual_seed(1))),
    "encoder, three tokens": (Reader, torch.randint(0, 50, (1, 3), generator=torch.Generator().manual_seed(1))),
    "lstm": (lambda: Recurrent(nn.LSTM, num_layers=2), torch.randint(0, 30, (3, 9), generator=torch.Generator().manual_seed(1))),
    "gru": (lambda: Recurrent(nn.GRU, bidirectional=True), torch.randint(0, 30, (1, 9), generator=torch.Generator().manual_seed(1))),
    "strange": (Strange, PLANES),
    "overwriting": (Overwriting, PLANES),
    "mlp": (lambda: S(nn.Flatten(), nn.Linear(60, 30), nn.ReLU(), nn.Linear(30, 10), nn.Softmax(1)), (1, 6, 10)),
}  # fmt: skip
CACHED = (torch.randint(0, 50, (1, 20), generator=torch.Generator().manual_seed(2)), torch.arange(20)[None])
