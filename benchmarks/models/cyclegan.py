"""The CycleGAN generator of GAN Compression (Li et al. 2020): horse to zebra, nine residual blocks of separable convolutions."""

from torch import Tensor, nn


def _norm(width: int) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(width, affine=False, track_running_stats=False)


class Separable(nn.Module):
    """Depthwise, normalise, pointwise."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inside, inside, 3, groups=inside), _norm(inside), nn.Conv2d(inside, outside, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResidualBlock(nn.Module):
    """``x + conv_block(x)``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        first = [nn.ReflectionPad2d(1), Separable(width, hidden), _norm(hidden), nn.ReLU(), nn.Dropout(0.0)]
        self.conv_block = nn.Sequential(*first, nn.ReflectionPad2d(1), Separable(hidden, width), _norm(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Generator(nn.Module):
    """Images in [-1, 1] to images in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        up = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(3, 16, 7), _norm(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1), _norm(32), nn.ReLU(),
            nn.Conv2d(32, 128, 3, 2, 1), _norm(128), nn.ReLU(),
            *(ResidualBlock(128, 64 if k < 3 else 128) for k in range(9)),
            nn.ConvTranspose2d(128, 32, **up), _norm(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, **up), _norm(16), nn.ReLU(),
            nn.ReflectionPad2d(3), nn.Conv2d(16, 3, 7), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
