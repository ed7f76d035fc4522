"""Pictures: grids of images, and PNG files of them."""

import io
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["from_bytes", "grid", "png", "to_bytes"]


def from_bytes(images: Tensor) -> Tensor:
    """uint8 in 0 to 255 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 in 0 to 255, rounded; uint8 passes through."""
    if images.dtype == torch.uint8:
        return images
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def png(image: Tensor) -> bytes:
    """The bytes of a PNG file.

    Args:
        image: ``[1 or 3, height, width]``: uint8, or in [-1, 1].

    >>> png(torch.zeros(3, 2, 2))[1:4]
    b'PNG'
    """
    from PIL import Image

    pixels = to_bytes(image.detach().cpu()).permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray((pixels[..., 0] if pixels.shape[2] == 1 else pixels).contiguous().numpy()).save(file, "png")
    return file.getvalue()


def grid(rows: Sequence[Tensor], *, gap: int = 2) -> Tensor:
    """Images side by side, a row for each batch, on white: uint8 ``[channels, height, width]``.

    Args:
        rows: batches ``[n, channels, h, w]``, uint8 or in [-1, 1].
        gap: white pixels between.
    """
    lines = []
    for batch in rows:
        padded = torch.nn.functional.pad(to_bytes(batch.detach().cpu()), (0, gap, 0, gap), value=255)
        lines.append(torch.cat(list(padded), 2))
    width = max(line.shape[2] for line in lines)
    return torch.cat([torch.nn.functional.pad(line, (0, width - line.shape[2]), value=255) for line in lines], 1)
