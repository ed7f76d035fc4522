"""Generators of image translation as people have them: the ResNet generator of CycleGAN and the U-Net of pix2pix.

    ResNet   c7s1-k, d2k, d4k, R4k x blocks, u2k, uk, c7s1-3, tanh            (Johnson et al. 2016; Zhu et al. 2017, appendix 7.2)
    U-Net    halve the image to one pixel and back, with skips at every size      (Isola et al. 2017, appendix 6.1.1)

Images are ``[batch, channels, height, width]`` in [-1, 1].
"""

from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import WrongModel

__all__ = ["ResNetGenerator", "ResidualBlock", "UNetGenerator", "initialise_"]

_UP: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}


class ResidualBlock(nn.Module):
    """``x + conv_block(x)``: two convolutions of 3x3 with reflected borders.

    Args:
        width: channels that go in and come out.
        hidden: channels between the two; None: as many.
        affine: whether instance norms have a scale and a shift.
        dropout: between the two.
    """

    def __init__(self, width: int, hidden: int | None = None, *, affine: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = hidden or width
        first = [
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, hidden, 3),
            nn.InstanceNorm2d(hidden, affine=affine),
            nn.ReLU(),
        ]
        drop = [nn.Dropout(dropout)] if dropout else []
        second = [nn.ReflectionPad2d(1), nn.Conv2d(hidden, width, 3), nn.InstanceNorm2d(width, affine=affine)]
        self.conv_block = nn.Sequential(*first, *drop, *second)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, width, h, w]`` to the same."""
        return x + self.conv_block(x)  # type: ignore[no-any-return]


class ResNetGenerator(nn.Module):
    """CycleGAN's generator; runs at any size that can be divided by 4.

    Args:
        width: channels after the first convolution (64 in the paper); the blocks have four times as many.
        blocks: residual blocks: 6 for images of 128 pixels and less, 9 above.
        channels: of the images.
        affine: whether instance norms have a scale and a shift.
        dropout: inside the blocks.

    >>> ResNetGenerator(8, 2)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self, width: int = 64, blocks: int = 9, *, channels: int = 3, affine: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()

        def after(size: int) -> list[nn.Module]:
            return [nn.InstanceNorm2d(size, affine=affine), nn.ReLU()]

        inner = 4 * width
        self.model = nn.Sequential(
            *(nn.ReflectionPad2d(3), nn.Conv2d(channels, width, 7), *after(width)),
            *(nn.Conv2d(width, 2 * width, 3, 2, 1), *after(2 * width)),
            *(nn.Conv2d(2 * width, inner, 3, 2, 1), *after(inner)),
            *(ResidualBlock(inner, affine=affine, dropout=dropout) for _ in range(blocks)),
            *(nn.ConvTranspose2d(inner, 2 * width, **_UP), *after(2 * width)),
            *(nn.ConvTranspose2d(2 * width, width, **_UP), *after(width)),
            *(nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), nn.Tanh()),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to the same, in [-1, 1]."""
        return self.model(x)  # type: ignore[no-any-return]


class UNetGenerator(nn.Module):
    """pix2pix's generator, with skips between layers of the same size.

    Args:
        size: height and width of the images; a power of two.
        width: channels after the first convolution; at most eight times as many inside.
        channels: of the images.
        affine: whether instance norms have a scale and a shift.
        dropout: in the three innermost ascents.
        down: how often the image is halved; None: down to two pixels, since an instance norm over one pixel gives zero.

    >>> UNetGenerator(32, 8)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        size: int = 256,
        width: int = 64,
        *,
        channels: int = 3,
        affine: bool = False,
        dropout: float = 0.0,
        down: int | None = None,
    ) -> None:
        super().__init__()
        down = down or size.bit_length() - 2
        if down < 2 or size % (1 << down):
            raise WrongModel(f"UNetGenerator(size={size}) cannot be halved {down} times; use a power of two from 8 on")
        widths = [min(width << k, 8 * width) for k in range(down)]
        self.downs = nn.ModuleList()
        before = channels
        for k, here in enumerate(widths):
            norm = [nn.InstanceNorm2d(here, affine=affine)] if k else []
            self.downs.append(nn.Sequential(nn.Conv2d(before, here, 4, 2, 1), *norm, nn.LeakyReLU(0.2)))
            before = here
        self.ups = nn.ModuleList()
        for k in range(down - 1, 0, -1):
            drop = [nn.Dropout(dropout)] if dropout and k >= down - 3 else []
            made = nn.ConvTranspose2d(before, widths[k - 1], 4, 2, 1)
            self.ups.append(nn.Sequential(made, nn.InstanceNorm2d(widths[k - 1], affine=affine), nn.ReLU(), *drop))
            before = 2 * widths[k - 1]
        self.last = nn.Sequential(nn.ConvTranspose2d(before, channels, 4, 2, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, size, size]`` to the same, in [-1, 1]."""
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        skips.pop()
        for up in self.ups:
            x = torch.cat([up(x), skips.pop()], 1)
        return self.last(x)  # type: ignore[no-any-return]


@torch.no_grad()
def initialise_(model: nn.Module, *, seed: int, std: float = 0.02) -> nn.Module:
    """Weights from a normal distribution, biases 0, scales of norms around 1: what GANs are started from (Radford et al. 2016)."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor):
            drawn = torch.randn(weight.shape, generator=generator) * std
            weight.copy_(drawn + 1 if weight.dim() == 1 else drawn)
        if isinstance(bias, Tensor):
            bias.zero_()
    return model
