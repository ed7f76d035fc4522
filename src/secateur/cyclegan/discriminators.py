"""PatchGAN: a discriminator that judges overlapping patches, C64-C128-C256-C512 (Isola et al. 2017; Zhu et al. 2017, appendix 7.2)."""

from torch import Tensor, nn

__all__ = ["PatchDiscriminator"]


class PatchDiscriminator(nn.Module):
    """One score for each patch: near 1 for images of the domain, near 0 for others (least squares, no sigmoid).

    Args:
        width: channels after the first convolution; doubled by every further one, up to eight times.
        layers: how often the image is halved; 3 judges patches of 70 pixels, 2 of 34, 1 of 16.
        channels: of the images.
        affine: whether instance norms have a scale and a shift.

    >>> import torch
    >>> PatchDiscriminator(8)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 1, 6, 6])
    """

    def __init__(self, width: int = 64, layers: int = 3, *, channels: int = 3, affine: bool = False) -> None:
        super().__init__()
        steps: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        before = width
        for k in range(1, layers + 1):
            here, stride = min(width << k, 8 * width), 2 if k < layers else 1
            steps += [nn.Conv2d(before, here, 4, stride, 1), nn.InstanceNorm2d(here, affine=affine), nn.LeakyReLU(0.2)]
            before = here
        self.model = nn.Sequential(*steps, nn.Conv2d(before, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to ``[batch, 1, patches, patches]``."""
        return self.model(x)  # type: ignore[no-any-return]
