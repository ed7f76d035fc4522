"""Pooling, padding and resampling of planes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from numpy.typing import NDArray

from secateur.runtime.emitting import Emitter, Rows
from secateur.runtime.graph import Node
from secateur.runtime.ops.arguments import Unfit, arguments, pair, value
from secateur.runtime.views import View

__all__ = ["EMIT"]


def _four(view: View) -> View:
    return view if len(view.shape) == 4 else view.unsqueezed(2)


def _pool(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = value(a["self"])
    if len(x.shape) - (2 if "2d" in node.name else 1) != 2:
        raise Unfit("pooling without a batch")
    dims = 2 if "2d" in node.name else 1
    kernel, padding = pair(a["kernel_size"], dims), _flat(pair(a["padding"], dims), dims)
    stride = pair(a["stride"], dims) if a["stride"] else kernel
    dilation = pair(a.get("dilation", 1), dims)
    is_max = node.name.startswith("max")
    view = _columns(e, e.view(x))
    out = e.plane(node.out) if e.planes.knows(node.out) else e.like(view, node.out.shape)
    divisor = a.get("divisor_override") or 0
    ints = [*kernel, *stride, *padding, *dilation, is_max, bool(a.get("count_include_pad", True)), divisor]
    reach = (stride[0], -padding[0], (kernel[0] - 1) * dilation[0] - padding[0])
    rows = Rows({0: _four(view), 1: _four(out)}, 1, {0: reach}) if view.space == out.space == 0 else None
    e.step("pool", [_four(view), _four(out)], ints, rows=rows)
    e.made(node.out, out)


def _flat(padding: tuple[int, int], dims: int) -> tuple[int, int]:
    return padding if dims == 2 else (0, padding[1])


def _columns(e: Emitter, view: View) -> View:
    """Planes whose columns are neighbours, as the kernels need them."""
    if view.strides[-1] == 1 or view.shape[-1] == 1:
        return view
    return e.copy(view, e.plain(view.shape))


def _resample(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = value(a.get("self") or a.get("input"))
    view = _columns(e, e.view(x))
    out = e.plane(node.out) if e.planes.knows(node.out) else e.plain(node.out.shape)
    height, width = _four(view).shape[2:]
    rows, columns, weights = _MAPS[node.name](node, a, height, width, _four(out).shape[2:])
    arrays: list[NDArray[Any]] = [rows.astype(np.int32).reshape(-1), columns.astype(np.int32).reshape(-1)]
    if weights is not None:
        arrays.append(weights.astype(np.float32).reshape(-1))
    e.step("resample", [_four(view), _four(out)], [len(rows)], [], arrays)
    e.made(node.out, out)


Map = tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]


def _numbered(height: int, width: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Map:
    """Ask torch where each pixel comes from: run the operation on the numbers of the pixels."""
    numbers = torch.arange(1, height * width + 1, dtype=torch.float64).reshape(1, 1, height, width)
    found = change(numbers).numpy().round().astype(np.int64)[0] - 1
    return np.where(found < 0, -1, found // width), np.where(found < 0, 0, found % width), None


def _nearest(node: Node, a: dict[str, Any], height: int, width: int, size: Any) -> Map:
    one_row = len(node.out.shape) == 3
    factors = a.get("scale_factors")

    def change(numbers: torch.Tensor) -> torch.Tensor:
        flat = numbers[:, :, 0] if one_row else numbers
        target: dict[str, Any] = (
            {"scale_factor": tuple(factors)} if factors else {"size": tuple(size[1:] if one_row else size)}
        )
        found = F.interpolate(flat, **target, mode="nearest-exact" if "exact" in node.name else "nearest")
        return found[:, :, None] if one_row else found

    return _numbered(height, width, change)


def _bilinear(_node: Node, a: dict[str, Any], height: int, width: int, size: Any) -> Map:
    factors = a.get("scale_factors") or [None, None]
    low_y, high_y, part_y = _line(height, size[0], a["align_corners"], factors[0])
    low_x, high_x, part_x = _line(width, size[1], a["align_corners"], factors[1])
    rows = np.stack([np.broadcast_to(r[:, None], size) for r in (low_y, low_y, high_y, high_y)])
    columns = np.stack([np.broadcast_to(c[None], size) for c in (low_x, high_x, low_x, high_x)])
    weights = [wy[:, None] * wx[None] for wy in (1 - part_y, part_y) for wx in (1 - part_x, part_x)]
    return rows, columns, np.stack(weights)


def _line(size: int, out: int, align: bool, factor: float | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    k = np.arange(out, dtype=np.float64)
    if align:
        at = k * ((size - 1) / (out - 1) if out > 1 else 0)
    else:
        at = np.maximum((k + 0.5) * (1 / factor if factor else size / out) - 0.5, 0)
    low = np.minimum(np.floor(at).astype(np.int64), size - 1)
    return low, np.minimum(low + 1, size - 1), at - low


def _padded(node: Node, a: dict[str, Any], height: int, width: int, _size: Any) -> Map:
    padding = list(a.get("padding") or a["pad"])
    mode = {
        "reflection_pad1d": "reflect",
        "reflection_pad2d": "reflect",
        "replication_pad1d": "replicate",
        "replication_pad2d": "replicate",
    }
    how = mode.get(node.name) or a.get("mode") or "constant"
    if how == "constant" and (a.get("value") or 0) != 0:
        raise Unfit("padding with something else than zero")
    one_row = len(node.out.shape) == 3

    def change(numbers: torch.Tensor) -> torch.Tensor:
        flat = numbers[:, :, 0] if one_row else numbers
        found = F.pad(flat, padding, mode=how)
        return found[:, :, None] if one_row else found

    return _numbered(height, width, change)


def _zero_padded(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = value(a["self"])
    padding, number = list(a["pad"]), a.get("value") or 0
    if a.get("mode", "constant") != "constant":
        return _resample(e, node)
    if min(padding) < 0:
        raise Unfit("padding that cuts")
    view = e.view(x)
    out = e.plane(node.out) if e.planes.knows(node.out) else e.plain(node.out.shape)
    filling = View(1, e.constants.number(np.array([number], np.float32)), 0, (), ()).expanded(node.out.shape)
    e.copy(filling, out)
    inner = out
    for k in range(len(padding) // 2):
        dim = len(x.shape) - 1 - k
        inner = inner.with_(
            [*inner.shape[:dim], x.shape[dim], *inner.shape[dim + 1 :]],
            inner.strides,
            padding[2 * k] * inner.strides[dim],
        )
    e.copy(view, inner)
    return e.made(node.out, out)


_MAPS: dict[str, Callable[[Node, dict[str, Any], int, int, Any], Map]] = {
    **dict.fromkeys(["upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact2d"], _nearest),
    "upsample_bilinear2d": _bilinear,
    **dict.fromkeys(["reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "pad"], _padded),
}


def _flip(e: Emitter, node: Node) -> None:
    view = e.view(value(node.args[0]))
    shape, strides, offset = view.shape, list(view.strides), 0
    for d in node.args[1]:
        offset += (shape[d] - 1) * strides[d]
        strides[d] = -strides[d]
    node.out.view = view.with_(shape, strides, offset)


EMIT: dict[str, Callable[[Emitter, Node], None]] = {
    **dict.fromkeys(["max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d"], _pool),
    **dict.fromkeys(_MAPS, _resample),
    "constant_pad_nd": _zero_padded,
    "pad": _zero_padded,
    "flip": _flip,
}
