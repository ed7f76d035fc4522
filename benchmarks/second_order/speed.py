"""Seconds: one layer from a ready Hessian, by width, beside llm-compressor's code for the same; a whole ResNet-50."""

from functools import partial
from typing import Any

import torch

import secateur as sc
from benchmarks.record import timed
from secateur.quadratic import damp, rise
from secateur.solvers.column_obs import ColumnChoice, column_obs
from secateur.solvers.support import refit_by_gradients


def layer(width: int) -> dict[str, Any]:
    """Half of a square layer: the columns, and the joint solve after them; what each leaves of the layer's energy, per cent."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2 * width, width, generator=g)
    w, h = torch.randn(width, width, generator=g), damp(x.t() @ x / len(x), 0.01).matrix
    rows: dict[str, Any] = {"level": f"layer of {width} x {width}", "method": "columns"}

    def left(change: torch.Tensor) -> float:
        return round(100 * rise(change.double(), h.double()) / rise(w.double(), h.double()), 2)

    (moved, mask, _), seconds = timed(partial(column_obs, w, h, ColumnChoice(count=width * width // 2)))
    solved, more = timed(partial(refit_by_gradients, w, h, mask, start=moved))
    rows |= {"seconds": round(seconds, 2), "error": left(moved * mask - w)}
    rows |= {"joint_solve_s": round(more, 2), "joint_solve_error": left(solved - w)}
    return rows | peer(w, h, left)


def peer(w: torch.Tensor, h: torch.Tensor, left: Any) -> dict[str, Any]:
    """The same by llm-compressor's SparseGPT, where it is installed."""
    try:
        from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
    except ImportError:
        return {}
    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = w.clone()
    how = {"sparsity": 0.5, "prune_n": 0, "prune_m": 0, "block_size": 128, "dampening_frac": 0.0}
    with torch.no_grad():
        (_, theirs), seconds = timed(
            partial(sparsify_weight, linear, {linear: h.clone()}, preserve_sparsity_mask=False, **how)
        )
    return {"llm_compressor_s": round(seconds, 2), "llm_compressor_error": left(theirs - w)}


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
