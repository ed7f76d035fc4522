"""Pictures without a picture library: grids of images, and PNG files of them (ISO/IEC 15948, 8-bit colours, one filter)."""

import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["grid", "png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(image: Tensor) -> bytes:
    """The bytes of a PNG file.

    Args:
        image: ``[1 or 3, height, width]``: uint8, or in [-1, 1].

    >>> png(torch.zeros(3, 2, 2))[1:4]
    b'PNG'
    """
    pixels = _bytes(image.detach().cpu())
    channels, height, width = pixels.shape
    rows = pixels.permute(1, 2, 0).reshape(height, width * channels)
    raw = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), rows], 1).numpy().tobytes()  # filter 0 before every row
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(raw, 9)) + _chunk(b"IEND", b"")


def grid(rows: Sequence[Tensor], *, gap: int = 2) -> Tensor:
    """Images side by side, a row for each batch, on white: uint8 ``[channels, height, width]``.

    Args:
        rows: batches ``[n, channels, h, w]``, uint8 or in [-1, 1].
        gap: white pixels between.
    """
    lines = []
    for batch in rows:
        padded = torch.nn.functional.pad(_bytes(batch.detach().cpu()), (0, gap, 0, gap), value=255)
        lines.append(torch.cat(list(padded), 2))
    width = max(line.shape[2] for line in lines)
    return torch.cat([torch.nn.functional.pad(line, (0, width - line.shape[2]), value=255) for line in lines], 1)


def _bytes(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
