"""Images of a domain: from a folder, or from a tensor; cropped and mirrored at random, in an order that depends on seed and epoch only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import NeedsTask
from secateur.pictures import from_bytes, to_bytes

__all__ = ["Images", "domains"]

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


class Images(Sequence[Tensor]):
    """Images of one domain, each ``[3, load, load]`` as uint8; read when first asked for, then kept.

    Args:
        source: a folder (searched for image files, in the order of their names), or images ``[n, 3, h, w]``: uint8, or in [-1, 1].
        size: height and width of what `batch` gives; None: as the tensor has it, or as the first file.
        load: height and width before cropping; None: size * 286 / 256, the paper's; the same as ``size`` leaves cropping out.
        keep_bytes: how much of a folder is kept in memory.

    Raises:
        NeedsTask: there is no image.
    """

    def __init__(
        self,
        source: str | Path | Tensor,
        size: int | None = None,
        *,
        load: int | None = None,
        keep_bytes: int = 2_000_000_000,
    ) -> None:
        self._tensor: Tensor | None = None
        self._files: list[Path] = []
        if isinstance(source, Tensor):
            self._tensor = to_bytes(source)
        else:
            self._files = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in _ENDINGS)
        if not len(self):
            raise NeedsTask(
                f"there are no images in {source if self._tensor is None else 'this tensor'}; endings: {sorted(_ENDINGS)}"
            )
        self.size = size or (min(_read(self._files[0]).shape[:2]) if self._tensor is None else self._tensor.shape[-1])
        self.load = load or round(self.size * 286 / 256)
        self._kept: dict[int, Tensor] = {}
        self._room = keep_bytes // (3 * self.load**2)

    def __len__(self) -> int:
        return len(self._files) if self._tensor is None else len(self._tensor)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index in self._kept:
            return self._kept[index]
        image = self._sized(index, self.load)
        if len(self._kept) < self._room:
            self._kept[index] = image
        return image

    def plain(self, count: int | None = None) -> Tensor:
        """The first images as they are, uncropped: ``[count, 3, size, size]`` in [-1, 1]."""
        chosen = range(min(count or len(self), len(self)))
        return from_bytes(torch.stack([self._sized(k, self.size) for k in chosen]))

    def batch(self, step: int, batch: int, *, seed: int) -> Tensor:
        """The batch of a step, ``[batch, 3, size, size]`` in [-1, 1]: every image once an epoch, cropped and mirrored at random."""
        chance = torch.Generator().manual_seed(_mix(seed, step, 1))
        room = self.load - self.size
        found = []
        for k in range(step * batch, (step + 1) * batch):
            epoch, place = divmod(k, len(self))
            order = torch.Generator().manual_seed(_mix(seed, epoch, 2))
            image = self[int(torch.randperm(len(self), generator=order)[place])]
            top, left = torch.randint(room + 1, (2,), generator=chance).tolist()
            image = image[:, top : top + self.size, left : left + self.size]
            found.append(image.flip(2) if float(torch.rand((), generator=chance)) < 0.5 else image)
        return from_bytes(torch.stack(found))

    def _sized(self, index: int, size: int) -> Tensor:
        """An image scaled so that its shorter side is ``size``, its middle cut out."""
        if self._tensor is None:
            return torch.from_numpy(_read(self._files[index], size).copy()).permute(2, 0, 1).contiguous()
        image = self._tensor[index]
        if image.shape[-2:] != (size, size):
            scaled = torch.nn.functional.interpolate(
                image[None].float(), (size, size), mode="bicubic", antialias=True, align_corners=False
            )
            image = scaled[0].round().clamp(0, 255).to(torch.uint8)
        return image


def domains(root: str | Path, part: str, size: int | None = None, load: int | None = None) -> tuple[Images, Images]:
    """The two domains of a folder with ``trainA/ trainB/ testA/ testB/``; ``part`` is "train" or "test"."""
    a = Images(Path(root) / f"{part}A", size, load=load)
    return a, Images(Path(root) / f"{part}B", a.size, load=load)


def _mix(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _read(path: Path, size: int | None = None) -> "np.ndarray[Any, Any]":
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
