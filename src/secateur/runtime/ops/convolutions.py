"""Convolutions as products of rows of weights and channel-major planes.

A convolution is a linear layer whose columns are (channel, tap) pairs: column (c, ky, kx) reads channel c, a fixed number of pixels away.
With stride s the input is first split into the s*s planes of every s-th pixel; a transposed convolution makes the s*s planes of its
output side by side, and they are put together afterwards. Groups are zeros of the matrix.
"""

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.emitting import Emitter, Rows
from secateur.runtime.fusing import Fused
from secateur.runtime.graph import Node, Value
from secateur.runtime.ops.arguments import Unfit, arguments, value
from secateur.runtime.ops.products import FEW, Weights, plane_rows, product
from secateur.runtime.ops.spreads import depthwise, finish, transposed
from secateur.runtime.ops.taps import Taps, is_depthwise, reach, taps_of
from secateur.runtime.planes import plane_shape
from secateur.runtime.views import View

__all__ = ["emit"]


def emit(e: Emitter, one: Fused) -> None:
    """The steps of a product with what was fused into it."""
    node = one.node
    e.path = node.path
    if node.name == "linear":
        a = arguments(node)
        bias = a["bias"].array if isinstance(a["bias"], Value) else None
        return product(e, node, e.view(value(a["input"])), value(a["weight"]).array, bias, one)
    if node.name == "addmm":
        added, x, weight = (value(v) for v in node.args[:3])
        if added.tensor is None or weight.tensor is None or len(added.shape) != 1:
            raise Unfit("a product of two activations")
        return product(e, node, e.view(x), np.ascontiguousarray(weight.array.T), added.array, one)
    return _convolution(e, one)


def _convolution(e: Emitter, one: Fused) -> None:
    a = arguments(one.node)
    x, weight, taps = value(a["input"]), value(a["weight"]).array, taps_of(one.node)
    if weight.ndim == 3:
        weight = weight[:, :, None]
    bias = a["bias"].array if isinstance(a["bias"], Value) else None
    rows = weight.shape[1] * taps.groups if taps.transposed else len(weight)
    if bias is None:
        bias = np.zeros(rows, np.float32)
    if one.scale is not None and one.shift is not None:
        bias = bias * one.scale + one.shift
        spread = one.scale if not taps.transposed else one.scale.reshape(taps.groups, -1)
        weight = weight * spread[:, None, None, None] if not taps.transposed else _scaled(weight, spread)
    if taps.transposed:
        return transposed(e, one, x, weight, bias, taps)
    if is_depthwise(one.node, taps):
        return depthwise(e, one, x, weight, bias, taps)
    n, _, height, width = plane_shape(x.shape)
    single = taps.kernel == (1, 1) and taps.stride == (1, 1) and (taps.above, taps.left) == (0, 0) and taps.groups == 1
    if single and n * height * width < FEW:
        flat = e.view(x)
        last = flat.permuted((0, *range(2, len(flat.shape)), 1))
        made = Value((*last.shape[:-1], rows), one.out.dtype)
        product(
            e, Node("linear", None, (), {}, [made], one.node.path), last, weight[:, :, 0, 0], bias, _unfused(one, made)
        )
        back = e.view(made)
        one.out.view = back.permuted((0, len(back.shape) - 1, *range(1, len(back.shape) - 1)))
        return finish(e, one, one.out)
    return _planes(e, one, x, weight, bias, taps)


def _scaled(weight: NDArray[np.float32], spread: NDArray[np.float32]) -> NDArray[np.float32]:
    groups = len(spread)
    parts = weight.reshape(groups, -1, *weight.shape[1:]) * spread[:, None, :, None, None]
    return np.ascontiguousarray(parts.reshape(weight.shape), np.float32)


def _unfused(one: Fused, made: Value) -> Fused:
    """The activation stays with the product; a residual of single pixels is added afterwards."""
    node = Node("linear", None, (), {}, [made], one.node.path)
    return Fused(node, node, act=one.act if one.residual is None else None)


def _planes(
    e: Emitter, one: Fused, x: Value, weight: NDArray[np.float32], bias: NDArray[np.float32], taps: Taps
) -> None:
    rows = len(weight)
    phases = taps.stride[0] * taps.stride[1]
    places = taps.places()
    if phases == 1:
        source, pitch = e.as_planes(x), e.planes.pitch(x)[0]
    elif taps.kernel == (1, 1) and (taps.above, taps.left) == (0, 0):
        (source, pitch), phases = _every(e, x, one.out, taps), 1
    else:
        source, pitch = _phases(e, x, one.out, taps, places)
    channel = np.repeat(np.arange(x.shape[1], dtype=np.int32) * phases, len(places)) + np.tile(
        np.array([p for p, _, _ in places], np.int32), x.shape[1]
    )
    shift = np.tile(np.array([dy * pitch + dx for _, dy, dx in places], np.int32), x.shape[1])
    matrix = weight.reshape(rows, -1)
    if taps.groups > 1:
        matrix = _spread(matrix, taps.groups)
    out = e.plane(one.out)
    ups = [dy for _, dy, _ in places]
    plane_rows(e, one, source, Weights(matrix, bias, channel, shift, taps.kernel, (min(ups), max(ups))), out)
    e.made(one.out, out)


def _spread(matrix: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    rows, columns = matrix.shape
    whole = np.zeros((rows, columns * groups), np.float32)
    per = rows // groups
    for g in range(groups):
        whole[g * per : (g + 1) * per, g * columns : (g + 1) * columns] = matrix[g * per : (g + 1) * per]
    return whole


def _phases(e: Emitter, x: Value, out: Value, taps: Taps, places: list[tuple[int, int, int]]) -> tuple[View, int]:
    n, c, height, width = plane_shape(x.shape)
    sy, sx = taps.stride
    part = Value((n, c * sy * sx, -(-height // sy), -(-width // sx)), x.dtype)
    e.planes.tie(part, out)
    part.asks(reach(part, out, [(dy, dx) for _, dy, dx in places]))
    target = e.plane(part)
    four = e.view(x) if len(x.shape) == 4 else e.view(x).unsqueezed(2)
    rows = Rows({0: four, 1: target}, 1, {0: (sy, 0, sy - 1)}) if height % sy == 0 else None
    e.step("phases", [four, target], [sy, sx], rows=rows)
    return e.border(part, target), e.planes.pitch(part)[0]


def _every(e: Emitter, x: Value, out: Value, taps: Taps) -> tuple[View, int]:
    """Every s-th pixel: all that a 1x1 convolution with a stride reads."""
    n, c, height, width = plane_shape(x.shape)
    sy, sx = taps.stride
    part = Value((n, c, (height - 1) // sy + 1, (width - 1) // sx + 1), x.dtype)
    e.planes.tie(part, out)
    target = e.plane(part)
    four = e.view(x) if len(x.shape) == 4 else e.view(x).unsqueezed(2)
    s = four.strides
    rows = Rows({0: four, 1: target}, 1, {0: (sy, 0, 0)})
    e.copy(four.with_(part.shape, (s[0], s[1], s[2] * sy, s[3] * sx)), target, rows)
    return target, e.planes.pitch(part)[0]
