"""Structural tricks of convolutional networks, one small module each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["IMAGES", "FromLatent"]


def conv(a: int, b: int, k: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, k, padding=k // 2, bias=False, **options), nn.BatchNorm2d(b), nn.ReLU())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 12), conv(12, 8), conv(8, 12)
        self.down, self.c, self.head = nn.Conv2d(12, 16, 1, 2), conv(12, 16, stride=2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x))
        return self.head((self.down(x) + self.c(x)).mean((2, 3)))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 8), conv(8, 4), conv(12, 6), nn.Conv2d(18, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.a(x)], 1)
        x = torch.cat([self.b(x), x], 1)
        return self.head(x)


class Inverted(nn.Module):
    """Depthwise, with squeeze-and-excite."""

    def __init__(self, multiplier: int = 1) -> None:
        super().__init__()
        self.up = conv(3, 12, 1)
        self.depthwise = nn.Conv2d(12, 12 * multiplier, 3, padding=1, groups=12)
        self.norm = nn.BatchNorm2d(12 * multiplier)
        self.squeeze, self.excite = nn.Conv2d(12 * multiplier, 6, 1), nn.Conv2d(6, 12 * multiplier, 1)
        self.down = nn.Conv2d(12 * multiplier, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.hardswish(self.norm(self.depthwise(self.up(x))))
        gate = self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(h, 1)))).sigmoid()
        return x + self.down(h * gate)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 16), conv(16, 24, groups=4), conv(24, 8, groups=2), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x))))


class Shuffle(nn.Module):
    """ShuffleNet: half of the channels pass by, then the halves interleave."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 16), conv(8, 8), conv(8, 8, groups=8), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.stem(x).chunk(2, 1)
        x = torch.cat([one, self.b(self.a(two))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x)


class Flatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 6)
        self.fc, self.head = nn.Linear(6 * 16, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(self.b(self.a(x)), 4)
        return self.head(F.dropout(F.relu(self.fc(torch.flatten(x, 1))), 0.0, self.training))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 12, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.a(x), 1)
        value, gate = self.b(x).chunk(2, 1)
        return self.head(value * gate.sigmoid())


class UNet(nn.Module):
    """Transposed convolutions and a skip."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.down, self.deep = conv(3, 8), conv(8, 12, stride=2)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2, groups=groups)
        self.merge, self.head = conv(16, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(self.merge(torch.cat([self.up(self.deep(skip)), skip], 1)))


class FromLatent(nn.Module):
    """A vector becomes an image: linear, view, transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 8
        self.fc, self.up, self.head = nn.Linear(6, 8 * 4), nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.Conv2d(6, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(self.fc(x).view(-1, self.channels, 2, 2)))).tanh()


class Generator(nn.Module):
    """As in CycleGAN: reflection padding, instance norm, residual blocks, transposed convolutions."""

    def __init__(self, affine: bool = False) -> None:
        super().__init__()
        norm = lambda c: nn.InstanceNorm2d(c, affine=affine, track_running_stats=affine)  # noqa: E731
        self.stem = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), norm(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), norm(12), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1), norm(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), norm(12)
        )
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 8, 3, 2, 1, 1), norm(8), nn.ReLU())
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        return self.head(self.up(x + self.block(x))).tanh()


class Discriminator(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 4, 2, 1), nn.InstanceNorm2d(16),
            nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 2),
        )  # fmt: skip


class ZeroPadded(nn.Module):
    """The CIFAR ResNet's shortcut without weights: every second pixel, and zeros for the new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 8), conv(8, 16, stride=2), conv(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head((short + self.b(self.a(x))).mean((2, 3)))


class ValueControl(nn.Module):
    """Python decides on values: no symbolic tracer follows this."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 8), conv(8, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        strong = x.mean().item() > -10
        x = self.a(x)
        for _ in range(2 if strong else 1):
            x = self.b(x)
        return self.head(self.c(x) if strong else x)


def pixels(*tail: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *tail)


IMAGES = {
    "residual": Residual,
    "dense_concat": Dense,
    "depthwise_squeeze_excite": Inverted,
    "depthwise_multiplier": lambda: Inverted(2),
    "grouped": Grouped,
    "channel_shuffle": Shuffle,
    "flatten": Flatten,
    "gated": Gated,
    "transposed": UNet,
    "transposed_grouped": lambda: UNet(groups=2),
    "generator": Generator,
    "generator_affine": lambda: Generator(affine=True),
    "discriminator": Discriminator,
    "zero_padded_shortcut": ZeroPadded,
    "value_control": ValueControl,
    "prelu": lambda: pixels(nn.Conv2d(8, 8, 1), nn.PReLU(8), nn.Conv2d(8, 4, 1), nn.PReLU(), nn.Conv2d(4, 2, 1)),
    "group_norm": lambda: pixels(nn.GroupNorm(4, 8), nn.Conv2d(8, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 2, 1)),
    "group_norm_per_channel": lambda: pixels(nn.Conv2d(8, 6, 1), nn.GroupNorm(6, 6), nn.Conv2d(6, 2, 1)),
    "norm_without_affine": lambda: pixels(nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 2, 1)),
    "norm_without_statistics": lambda: pixels(nn.BatchNorm2d(8, track_running_stats=False), nn.Conv2d(8, 2, 1)),
    "weight_norm": lambda: nn.Sequential(
        weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), weight_norm(nn.Conv2d(8, 6, 1)), nn.ReLU(), nn.Conv2d(6, 2, 1)
    ),
    "pixel_shuffle": lambda: pixels(nn.Conv2d(8, 24, 1), nn.PixelShuffle(2), nn.Conv2d(6, 3, 1)),
    "pixel_unshuffle": lambda: pixels(nn.PixelUnshuffle(2), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)),
    "resize": lambda: pixels(nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 1), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1)),
    "unfold": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Unfold(2, stride=2), nn.Conv1d(24, 8, 1), nn.ReLU(), nn.Conv1d(8, 2, 1)
    ),
}
