"""Seconds: one layer from a ready Hessian, by width; a whole ResNet-50."""

from functools import partial
from typing import Any

import torch

import secateur as sc
from benchmarks.record import timed
from secateur.quadratic import damp
from secateur.solvers.column_obs import ColumnChoice, column_obs
from secateur.solvers.support import refit_by_gradients


def layer(width: int) -> dict[str, Any]:
    """Half of a square layer: the columns, and the joint solve after them."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2 * width, width, generator=g)
    w, h = torch.randn(width, width, generator=g), damp(x.t() @ x / len(x), 0.01).matrix
    (moved, mask, _), seconds = timed(partial(column_obs, w, h, ColumnChoice(count=width * width // 2)))
    _, more = timed(partial(refit_by_gradients, w, h, mask, start=moved))
    found = {"level": f"layer of {width} x {width}", "method": "columns", "seconds": round(seconds, 2)}
    return found | {"joint_solve_s": round(more, 2)}


def resnet50(images: int = 32) -> dict[str, Any]:
    """All convolutions of a ResNet-50 at half, columns and joint solve, its Hessians included."""
    torch.manual_seed(0)
    from torchvision.models import resnet50 as made

    model = made().eval()
    batches = [torch.randn(8, 3, 224, 224) for _ in range(images // 8)]
    pruned, seconds = timed(
        partial(sc.prune, model, "layer_obs", sparsity=0.5, scope="layer", task=sc.Task(batches), norms=False)
    )
    return {
        "level": f"ResNet-50, {images} images",
        "method": "columns",
        "seconds": round(seconds, 1),
        "sparsity": round(pruned.masks.sparsity, 4),
    }
