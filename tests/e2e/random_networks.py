"""Networks drawn at random: shapes, layers, branches; every number gives the same one. For `engine_graphs.py`."""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Drawn", "drawn"]

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Identity,
]  # fmt: skip
Step = tuple[str, tuple[int, ...], Any]


class Drawn(nn.Module):
    """Steps in order; each takes earlier results by number and gives the next one."""

    def __init__(self, steps: list[Step], parts: list[nn.Module], outputs: list[int]) -> None:
        super().__init__()
        self.steps, self.parts, self.outputs = steps, nn.ModuleList(parts), outputs

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        known = [x]
        for name, given, how in self.steps:
            known.append(_made(name, [known[k] for k in given], how, self.parts))
        return tuple(known[k] for k in self.outputs)


def _made(name: str, xs: list[Tensor], how: Any, parts: nn.ModuleList) -> Tensor:
    x = xs[0]
    if name == "part":
        out = parts[how](x)
        return out[0] if isinstance(out, tuple) else out
    if name == "attend":
        return parts[how](x, x, x, need_weights=False)[0]
    if name == "causal":
        q, k, v = (x.unflatten(-1, (how, -1)).transpose(1, 2),) * 3
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    binary = {"add": torch.add, "mul": torch.mul, "sub": torch.sub, "max": torch.maximum}
    if name in binary:
        return binary[name](x, xs[1])
    return {
        "cat": lambda: torch.cat(xs, how),
        "scale": lambda: x * how + 0.5,
        "slice": lambda: x[:, how[0] : how[1]],
        "crop": lambda: x[..., how[0] :, how[1] :],
        "gate": lambda: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        "softmax": lambda: x.softmax(how),
        "tokens": lambda: x.flatten(2).transpose(1, 2),
        "flip": lambda: x.transpose(-1, -2),
        "mean": lambda: x.mean(how),
        "flat": lambda: x.flatten(1),
        "shuffle": lambda: x.unflatten(1, (how, -1)).transpose(1, 2).flatten(1, 2),
        "pad": lambda: F.pad(x, how),
        "up": lambda: F.interpolate(x, scale_factor=2, mode=how),
        "pixels": lambda: F.pixel_shuffle(x, 2),
    }[name]()


class _Drawing:
    """Draws one network; runs every layer on the way, so that shapes are known."""

    def __init__(self, seed: int) -> None:
        self.dice, self.steps, self.parts = random.Random(seed), list[Step](), list[nn.Module]()
        torch.manual_seed(seed)
        self.known = [self.start()]

    def start(self) -> Tensor:
        """An image, a sequence or a vector."""
        n, kind = self.dice.randint(1, 3), self.dice.random()
        if kind < 0.65:
            return torch.randn(n, self.dice.randint(1, 12), self.dice.randint(2, 18), self.dice.randint(2, 24))
        if kind < 0.88:
            return torch.randn(n, self.dice.randint(1, 14), self.dice.choice([4, 7, 8, 12, 16, 24]))
        return torch.randn(n, self.dice.randint(1, 60))

    def add(self, name: str, given: tuple[int, ...], how: Any) -> None:
        with torch.no_grad():
            found = _made(name, [self.known[k] for k in given], how, nn.ModuleList(self.parts))
        if (
            found.numel() <= 40_000
            and found.numel()
            and bool(found.isfinite().all())
            and float(found.abs().max()) < 1e4
        ):
            self.steps.append((name, given, how))
            self.known.append(found)

    def part(self, at: int, module: nn.Module) -> None:
        for p in module.parameters():
            nn.init.normal_(p, std=(1 / max(1, p[0].numel())) ** 0.5 if p.dim() > 1 else 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        self.parts.append(module.eval())
        self.add("part", (at,), len(self.parts) - 1)

    def step(self) -> None:
        """One more result, mostly of the last one."""
        dice = self.dice
        at = len(self.known) - 1 if dice.random() < 0.8 else dice.randrange(len(self.known))
        alike = [k for k, x in enumerate(self.known) if x.shape == self.known[at].shape]
        if dice.random() < 0.18 and len(alike) > 1:
            self.add(dice.choice(["add", "add", "mul", "sub", "max"]), (at, dice.choice(alike)), None)
        elif dice.random() < 0.15:
            self.part(at, dice.choice(ACTIVATIONS)())
        elif self.known[at].dim() == 4:
            self.image(at)
        elif self.known[at].dim() == 3:
            self.sequence(at)
        else:
            self.vector(at)

    def image(self, at: int) -> None:
        dice, (_, c, h, w) = self.dice, self.known[at].shape
        kinds = (
            ["conv"] * 6 + ["depthwise"] * 2 + ["up_conv", "norm", "norm", "pool", "pool", "other", "other", "leave"]
        )
        kind = dice.choice(kinds)
        if kind in ("conv", "depthwise"):
            groups = c if kind == "depthwise" else dice.choice([g for g in (1, 1, 1, 2, 3) if c % g == 0])
            outs = groups * (dice.randint(1, 2) if kind == "depthwise" else max(1, dice.randint(1, 24) // groups))
            kernel, dilation = (dice.randint(1, 4), dice.randint(1, 4)), dice.choice([1, 1, 1, 2])
            padding = (dice.randint(0, 3), dice.randint(0, 3))
            mode = dice.choice(["zeros"] * 8 + ["reflect", "replicate"])
            padding = padding if mode == "zeros" else (min(padding[0], h - 1), min(padding[1], w - 1))
            if any(s + 2 * p <= dilation * (k - 1) for s, p, k in zip((h, w), padding, kernel, strict=True)):
                return
            how = {"dilation": dilation, "groups": groups, "bias": dice.random() < 0.7, "padding_mode": mode}
            self.part(at, nn.Conv2d(c, outs, kernel, (dice.randint(1, 2), dice.randint(1, 3)), padding, **how))
        elif kind == "up_conv":
            kernel, stride = dice.randint(1, 4), dice.randint(1, 2)
            padding = dice.randint(0, (kernel - 1) // 2)
            self.part(
                at,
                nn.ConvTranspose2d(
                    c, dice.randint(1, 12), kernel, stride, padding, output_padding=stride - 1 if kernel > 1 else 0
                ),
            )
        elif kind == "norm":
            affine = dice.random() < 0.8
            norms: list[nn.Module] = [
                nn.BatchNorm2d(c),
                nn.GroupNorm(dice.choice([g for g in (1, 2, 3) if c % g == 0]), c),
            ]
            self.part(at, dice.choice([*norms, *([nn.InstanceNorm2d(c, affine=affine)] if h * w > 1 else [])]))
        elif kind == "pool":
            size, stride = dice.randint(1, 3), dice.randint(1, 2)
            if min(h, w) < size:
                return
            how = {"stride": stride, "padding": dice.randint(0, size // 2), "ceil_mode": dice.random() < 0.2}
            pools = [nn.MaxPool2d(size, **how), nn.AvgPool2d(size, **how, count_include_pad=dice.random() < 0.5)]
            self.part(at, dice.choice([*pools, nn.AdaptiveAvgPool2d((dice.randint(1, h), dice.randint(1, w)))]))
        elif kind == "other":
            self.reshaped(at)
        else:
            self.add(*dice.choice([("tokens", (at,), None), ("mean", (at,), (2, 3)), ("flat", (at,), None)]))

    def reshaped(self, at: int) -> None:
        """What nets do to images without weights."""
        dice, (_, c, h, w) = self.dice, self.known[at].shape
        partners = [k for k, x in enumerate(self.known) if x.dim() == 4 and x.shape[2:] == (h, w)]
        low = dice.randint(0, c - 1)
        options: list[Step] = [
            ("cat", (*dice.choices(partners, k=dice.randint(1, 2)), at), 1),
            ("slice", (at,), (low, dice.randint(low + 1, c))),
            ("crop", (at,), (dice.randint(0, h - 1), dice.randint(0, w - 1))),
            ("gate", (at,), None),
            ("scale", (at,), dice.choice([-1.5, 0.25, 2.0])),
            ("pad", (at,), [dice.randint(0, 2) for _ in range(4)]),
            ("up", (at,), dice.choice(["nearest", "bilinear"])),
            ("softmax", (at,), dice.choice([1, -1])),
            *([("shuffle", (at,), 2)] if c % 2 == 0 else []),
            *([("pixels", (at,), None)] if c % 4 == 0 else []),
        ]
        self.add(*dice.choice(options))

    def sequence(self, at: int) -> None:
        dice, (_, t, d) = self.dice, self.known[at].shape
        outs, kind = (
            dice.randint(1, 40),
            dice.choice(["linear"] * 4 + ["norm", "norm", "attend", "causal", "recurrent", "conv", "other"]),
        )
        heads = dice.choice([h for h in (1, 2, 4) if d % h == 0])
        if kind == "linear":
            self.part(at, nn.Linear(d, outs, bias=dice.random() < 0.7))
        elif kind == "norm":
            self.part(at, dice.choice([nn.LayerNorm(d), nn.RMSNorm(d, eps=1e-5)]))
        elif kind == "attend":
            self.parts.append(nn.MultiheadAttention(d, heads, batch_first=True).eval())
            self.add("attend", (at,), len(self.parts) - 1)
        elif kind == "causal":
            self.add("causal", (at,), heads)
        elif kind == "recurrent":
            make = dice.choice([nn.LSTM, nn.GRU])
            self.part(
                at,
                make(d, dice.randint(1, 12), dice.randint(1, 2), batch_first=True, bidirectional=dice.random() < 0.3),
            )
        elif kind == "conv":
            kernel = dice.randint(1, 3)
            self.part(at, nn.Conv1d(t, dice.randint(1, 16), kernel, padding=kernel // 2))
        else:
            options: list[Step] = [
                ("flip", (at,), None),
                ("mean", (at,), 1),
                ("flat", (at,), None),
                ("softmax", (at,), -1),
                ("scale", (at,), 0.5),
            ]
            self.add(*dice.choice([*options, ("slice", (at,), (dice.randint(0, t - 1), t))]))

    def vector(self, at: int) -> None:
        dice, (_, d) = self.dice, self.known[at].shape
        if dice.random() < 0.7:
            self.part(at, nn.Linear(d, dice.randint(1, 70), bias=dice.random() < 0.7))
        else:
            norms: list[nn.Module] = [nn.BatchNorm1d(d), nn.LayerNorm(d)]
            self.part(at, dice.choice(norms))


def drawn(seed: int) -> tuple[Drawn, Tensor]:
    """The network of this number, and an input."""
    drawing = _Drawing(seed)
    for _ in range(drawing.dice.randint(1, 10)):
        drawing.step()
    last = len(drawing.known) - 1
    outputs = [last, *(k for k in range(1, last) if drawing.dice.random() < 0.1)]
    return Drawn(drawing.steps, drawing.parts, outputs).eval(), drawing.known[0]
