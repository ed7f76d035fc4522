"""Every constructor of torchvision, at the smallest input that the architecture is meant for."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.cases import Entry

DETECTION = ("rcnn", "retinanet", "fcos", "ssd")
SEGMENTATION = ("fcn", "deeplab", "lraspp")
VIDEO = ("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")
LARGE = (
    "vit_h",
    "vit_l",
    "vit_b",
    "128gf",
    "32gf",
    "convnext_l",
    "convnext_b",
    "v2_l",
    "v2_m",
    "b7",
    "64x4d",
    "vgg",
    "mvit",
    "swin3d",
)


def entries() -> Iterator[Entry]:
    import torchvision

    names = torchvision.models.list_models()
    yield from (_entry(n) for n in sorted(names, key=lambda n: (any(large in n for large in LARGE), n)))


def _entry(name: str) -> Entry:
    family = f"torchvision {_kind(name)}"
    if _kind(name) == "detection":
        return Entry(family, name, lambda: _make(name), lambda: ([torch.rand(3, *_size(name))],), _losses)
    return Entry(family, name, lambda: _make(name), lambda: _inputs(name))


def _kind(name: str) -> str:
    for kind, parts in {
        "detection": DETECTION,
        "segmentation": SEGMENTATION,
        "video": VIDEO,
        "optical flow": ("raft",),
    }.items():
        if any(part in name for part in parts):
            return kind
    return "quantizable" if name.startswith("quantized_") else "classification"


def _make(name: str) -> nn.Module:
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if _kind(name) in ("detection", "segmentation"):
        options["weights_backbone"] = None
    if _kind(name) == "detection" and "ssd" not in name:
        options |= {"min_size": 128, "max_size": 160}
    if name.startswith("quantized_"):
        options["quantize"] = False
    if name.startswith("vit_"):
        options["image_size"] = _size(name)[0]
    if name.endswith(("googlenet", "inception_v3")):
        options["init_weights"] = True
    model: nn.Module = torchvision.models.get_model(name, **options)
    return model


def _inputs(name: str) -> Any:
    kind = _kind(name)
    if kind == "optical flow":
        return {"image1": torch.randn(1, 3, 128, 128), "image2": torch.randn(1, 3, 128, 128), "num_flow_updates": 2}
    if kind == "video":
        frames, size = (16, 224) if name.startswith(("mvit", "s3d")) else (8, 64)
        return (
            torch.randn(1, 3, frames, size, size)
            if name.startswith(("mvit", "swin"))
            else torch.randn(2, 3, frames, size, size)
        )
    return torch.randn(2, 3, *_size(name))


def _size(name: str) -> tuple[int, int]:
    if "ssd" in name:
        return (300, 300) if "300" in name else (320, 320)
    special: dict[str, int] = {
        "inception": 299,
        "maxvit": 224,
        "vit_h": 112,
        "vit_": 128,
        "alexnet": 96,
        "rcnn": 128,
        "fcos": 128,
        "retinanet": 128,
    }
    side = next((size for part, size in special.items() if part in name), 64)
    return side, side


def _losses(model: nn.Module, images: Any) -> Tensor:
    """Detection models give their losses in train mode, and want boxes."""
    boxes = torch.tensor([[10.0, 10.0, 60.0, 80.0], [30.0, 20.0, 100.0, 110.0]])
    target = {
        "boxes": boxes,
        "labels": torch.tensor([1, 1]),
        "masks": torch.ones(2, *images[0][0].shape[1:], dtype=torch.uint8),
        "keypoints": torch.tensor([[20.0, 30.0, 1.0]]).repeat(2, 17, 1),
    }
    return torch.stack(list(model(images[0] * 2, [target] * 2).values())).sum()  # batch norm wants more than one
