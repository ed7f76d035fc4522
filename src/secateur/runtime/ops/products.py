"""Linear layers and convolutions as products of rows of weights and channel-major activations.

A convolution is a linear layer whose columns are (channel, tap) pairs: column (c, ky, kx) reads channel c, a fixed number of pixels away.
With stride s the input is first split into the s*s planes of every s-th pixel; a transposed convolution makes the s*s planes of its
output side by side, and they are put together afterwards. Groups are zeros of the matrix.
"""

import math
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.emitting import Emitter, Label
from secateur.runtime.fusing import Fused
from secateur.runtime.graph import Node, Value
from secateur.runtime.matrices import compressed, rows_of
from secateur.runtime.ops.arguments import Unfit, arguments, pair, value
from secateur.runtime.ops.elementwise import apply
from secateur.runtime.planes import plane_shape
from secateur.runtime.pointwise import PAIRS, Activation
from secateur.runtime.views import View

__all__ = ["Taps", "emit", "prepare", "product"]

_FEW = 4  # positions below which rows are multiplied by one vector after the other


@dataclass(frozen=True)
class Taps:
    """A convolution's geometry."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    above: int
    left: int
    dilation: tuple[int, int]
    groups: int
    transposed: bool

    @property
    def depthwise(self) -> bool:
        """One input channel for each group: set by `taps_of`."""
        return self.groups > 1

    def places(self) -> list[tuple[int, int, int]]:
        """For each tap: the phase that it reads, and how many rows and columns away."""
        found = []
        for ky in range(self.kernel[0]):
            for kx in range(self.kernel[1]):
                y, x = ky * self.dilation[0] - self.above, kx * self.dilation[1] - self.left
                (dy, py), (dx, px) = divmod(y, self.stride[0]), divmod(x, self.stride[1])
                found.append((py * self.stride[1] + px, dy, dx))
        return found


def taps_of(node: Node) -> Taps:
    """Read the arguments of a convolution.

    Raises:
        Unfit: a form that the engine has no steps for.
    """
    a = arguments(node)
    weight = value(a["weight"])
    dims = len(weight.shape) - 2
    kernel = pair(weight.shape[2:], dims)
    stride, dilation = _flat(pair(a["stride"], dims), dims), _flat(pair(a["dilation"], dims), dims)
    transposed = bool(a.get("transposed")) or "transpose" in node.name
    if a["padding"] == "same":
        above, left = (d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    elif a["padding"] == "valid":
        above = left = 0
    else:
        above, left = pair(a["padding"], dims)
        above = above if dims == 2 else 0
    if len(value(a["input"]).shape) != dims + 2:
        raise Unfit("a convolution without a batch")
    return Taps(kernel, stride, above, left, dilation, a["groups"], transposed)


def _flat(sizes: tuple[int, int], dims: int) -> tuple[int, int]:
    return sizes if dims == 2 else (1, sizes[1])


def prepare(e: Emitter, node: Node) -> None:
    """Before anything is placed: tie pitches, and ask for the zeros that the taps read."""
    x, out = value(node.args[0]), node.out
    taps = taps_of(node)
    if taps.transposed:
        e.planes.tie(x)
        x.asks(_reach(x, node.out, _back_shifts(taps)))
        e.planes.tie(out)
        return
    e.planes.tie(out)
    if taps.stride == (1, 1):
        e.planes.tie(x, out)
        x.asks(_reach(x, out, [(dy, dx) for _, dy, dx in taps.places()]))
    elif _is_depthwise(node, taps):
        e.planes.tie(x)
        x.asks(_around(x, out, taps))


def _reach(x: Value, out: Value, shifts: list[tuple[int, int]]) -> tuple[int, int, int, int]:
    """Zeros that are read around ``x`` when output pixel (i, j) reads (i + dy, j + dx)."""
    _, _, height, width = plane_shape(x.shape)
    _, _, rows, columns = plane_shape(out.shape)
    dys, dxs = [dy for dy, _ in shifts], [dx for _, dx in shifts]
    below, right = rows - 1 + max(dys) - (height - 1), columns - 1 + max(dxs) - (width - 1)
    return (max(0, -min(dys)), max(0, below), max(0, -min(dxs)), max(0, right))


def _around(x: Value, out: Value, t: Taps) -> tuple[int, int, int, int]:
    _, _, height, width = plane_shape(x.shape)
    _, _, rows, columns = plane_shape(out.shape)
    below = (rows - 1) * t.stride[0] + (t.kernel[0] - 1) * t.dilation[0] - t.above - (height - 1)
    right = (columns - 1) * t.stride[1] + (t.kernel[1] - 1) * t.dilation[1] - t.left - (width - 1)
    return (t.above, max(0, below), t.left, max(0, right))


def _is_depthwise(node: Node, taps: Taps) -> bool:
    x, weight = value(node.args[0]), value(node.args[1])
    alike = taps.stride[0] == taps.stride[1] or plane_shape(x.shape)[2] == 1
    return not taps.transposed and taps.groups == x.shape[1] == weight.shape[0] and taps.groups > 1 and alike


def emit(e: Emitter, one: Fused) -> None:
    """The steps of a product with what was fused into it."""
    node = one.node
    e.path = node.path
    if node.name == "linear":
        a = arguments(node)
        bias = a["bias"].array if isinstance(a["bias"], Value) else None
        return product(e, node, e.view(value(a["input"])), value(a["weight"]).array, bias, one)
    if node.name == "addmm":
        bias, x, weight = (value(v) for v in node.args[:3])
        if bias.tensor is None or weight.tensor is None or len(bias.shape) != 1:
            raise Unfit("a product of two activations")
        return product(e, node, e.view(x), np.ascontiguousarray(weight.array.T), bias.array, one)
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
        return _transposed(e, one, x, weight, bias, taps)
    if _is_depthwise(one.node, taps):
        return _depthwise(e, one, x, weight, bias, taps)
    n, _, height, width = plane_shape(x.shape)
    single = taps.kernel == (1, 1) and taps.stride == (1, 1) and (taps.above, taps.left) == (0, 0) and taps.groups == 1
    if single and n * height * width < _FEW:
        flat = e.view(x)
        last = flat.permuted((0, *range(2, len(flat.shape)), 1))
        made = Value((*last.shape[:-1], rows), one.out.dtype)
        product(e, Node("linear", None, (), {}, [made], one.node.path), last, weight[:, :, 0, 0], bias, _unfused(one, made))
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


def finish(e: Emitter, one: Fused, out: Value) -> None:
    """Add the residual and apply the activation that a product could not take along."""
    if one.residual is None:
        return
    view = e.view(out)
    total = e.like(view)
    e.step("binary", [view, e.view(one.residual), total], [PAIRS["add"]], [-math.inf, math.inf])
    if one.act is not None:
        apply(e, one.act, total, total)
    one.out.view = total


def _planes(e: Emitter, one: Fused, x: Value, weight: NDArray[np.float32], bias: NDArray[np.float32], taps: Taps) -> None:
    rows, per_group, *_ = weight.shape
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
    _rows(e, one, source, matrix, bias, channel, shift, out, taps.kernel)
    e.made(one.out, out)
    del per_group


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
    part.asks(_reach(part, out, [(dy, dx) for _, dy, dx in places]))
    target = e.plane(part)
    four = e.view(x) if len(x.shape) == 4 else e.view(x).unsqueezed(2)
    e.step("phases", [four, target], [sy, sx])
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
    e.copy(four.with_(part.shape, (s[0], s[1], s[2] * sy, s[3] * sx)), target)
    return target, e.planes.pitch(part)[0]


def _depthwise(e: Emitter, one: Fused, x: Value, weight: NDArray[np.float32], bias: NDArray[np.float32], t: Taps) -> None:
    source, out = e.as_planes(x), e.plane(one.out)
    four = out if len(out.shape) == 4 else out.unsqueezed(2)
    if four.shape[2] == 1:
        pitch = e.planes.pitch(one.out)[0]
        four = four.with_(four.shape, (four.strides[0], four.strides[1], pitch, 1))
        source = source.with_(source.shape, (source.strides[0], source.strides[1], e.planes.pitch(x)[0], 1))
    act = one.act if one.act is not None and one.residual is None else Activation()
    stride = t.stride[1] if plane_shape(x.shape)[2] == 1 else t.stride[0]
    ints = [*t.kernel, stride, t.above, t.left, *t.dilation]
    macs = int(prod(four.shape) * prod(t.kernel))
    label = Label(one.node.path, "depthwise", weight.shape, float((weight != 0).mean()), "dense", macs)
    arrays = [np.ascontiguousarray(weight, np.float32).reshape(-1), bias.astype(np.float32)]
    e.step("depthwise", [source, four], ints, [act.low, act.high], arrays, label)
    if act.name != "none":
        apply(e, act, out, out)
    e.made(one.out, out)
    if one.residual is not None:
        finish(e, one, one.out)
        e.made(one.out, e.view(one.out))


def _back_shifts(t: Taps) -> list[tuple[int, int]]:
    return [(dy, dx) for dy in _back(t.kernel[0], t.stride[0], t.above, t.dilation[0]) for dx in _back(t.kernel[1], t.stride[1], t.left, t.dilation[1])]


def _back(kernel: int, stride: int, padding: int, dilation: int) -> list[int]:
    return sorted({(r + padding - k * dilation) // stride for r in range(stride) for k in range(kernel) if (r + padding - k * dilation) % stride == 0})


def _transposed(e: Emitter, one: Fused, x: Value, weight: NDArray[np.float32], bias: NDArray[np.float32], t: Taps) -> None:
    """Output pixel q*s + r of phase r adds up x[q + (r + padding - k*dilation) / s] over the taps k where that is whole."""
    n, _, height, width = plane_shape(one.out.shape)
    (sy, sx), per = t.stride, weight.shape[1]
    rows = per * t.groups
    source, pitch = e.as_planes(x), e.planes.pitch(x)[0]
    shifts = _back_shifts(t)
    place = {s: k for k, s in enumerate(shifts)}
    inner = x.shape[1] // t.groups
    matrix = np.zeros((rows, sy * sx, x.shape[1], len(shifts)), np.float32)
    for ry in range(sy):
        for rx in range(sx):
            for ky in range(t.kernel[0]):
                for kx in range(t.kernel[1]):
                    (dy, a), (dx, b) = divmod(ry + t.above - ky * t.dilation[0], sy), divmod(rx + t.left - kx * t.dilation[1], sx)
                    if a or b:
                        continue
                    for g in range(t.groups):
                        ins = slice(g * inner, (g + 1) * inner)
                        matrix[g * per : (g + 1) * per, ry * sx + rx, ins, place[dy, dx]] += weight[ins, :, ky, kx].T
    made = Value((n, rows * sy * sx, -(-height // sy), -(-width // sx)), x.dtype)
    e.planes.tie(made, x)
    planes = e.plane(made)
    channel = np.repeat(np.arange(x.shape[1], dtype=np.int32), len(shifts))
    shift = np.tile(np.array([dy * pitch + dx for dy, dx in shifts], np.int32), x.shape[1])
    inner_one = Fused(one.node, one.node, act=one.act if one.residual is None else None)
    _rows(e, inner_one, source, matrix.reshape(rows * sy * sx, -1), np.repeat(bias, sy * sx).astype(np.float32), channel, shift, planes, t.kernel)
    out = e.plane(one.out)
    four = out if len(out.shape) == 4 else out.unsqueezed(2)
    _woven(e, planes, four, (sy, sx))
    e.made(one.out, out)
    finish(e, one, one.out)
    if one.residual is not None:
        e.made(one.out, e.view(one.out))


def _woven(e: Emitter, planes: View, out: View, stride: tuple[int, int]) -> None:
    sy, sx = stride
    n, c, height, width = out.shape
    for ry in range(min(sy, height)):
        for rx in range(min(sx, width)):
            shape = (n, c, -(-(height - ry) // sy), -(-(width - rx) // sx))
            target = out.with_(shape, (out.strides[0], out.strides[1], out.strides[2] * sy, sx), ry * out.strides[2] + rx)
            step = planes.strides[1]
            source = planes.with_(shape, (planes.strides[0], step * sy * sx, *planes.strides[2:]), (ry * sx + rx) * step)
            e.copy(source, target)


def _rows(
    e: Emitter,
    one: Fused,
    source: View,
    matrix: NDArray[np.float32],
    bias: NDArray[np.float32],
    channel: NDArray[np.int32],
    shift: NDArray[np.int32],
    out: View,
    kernel: tuple[int, int],
) -> None:
    """The product itself, over every pixel from the first to the last, gaps included."""
    four = out if len(out.shape) == 4 else out.unsqueezed(2)
    positions = (four.shape[0] - 1) * four.strides[0] + (four.shape[2] - 1) * four.strides[2] + four.shape[3]
    if four.shape[2] == 1:
        positions = (four.shape[0] - 1) * four.strides[0] + four.shape[3]
    x = source.with_((source.shape[1], positions), (source.strides[1], 1))
    y = four.with_((len(matrix), positions), (four.strides[1], 1))
    residual = None
    if one.residual is not None:
        r = e.view(one.residual)
        r4 = r if len(r.shape) == 4 else r.unsqueezed(2)
        same = r4.space == 0 and all(n == 1 or a == b for n, a, b in zip(r4.shape, (r4.strides[0], 0, *r4.strides[2:]), (four.strides[0], 0, *four.strides[2:]), strict=True))
        if not same:
            r4 = e.copy(r4, e.plane(Value(one.out.shape, one.out.dtype, need=one.out.need)) if not e.planes.knows(one.residual) else _twin(e, one.out, four))
        residual = r4.with_((len(matrix), positions), (r4.strides[1], 1))
    spare = four.shape[0] * four.shape[2] * four.shape[3]
    emit_rows(e, one, x, y, residual, matrix, bias, channel, shift, spare, kernel)


def _twin(e: Emitter, out: Value, four: View) -> View:
    del out
    fresh = View(0, 0, 0, four.shape, four.strides)
    return View(0, e.buffer(fresh.span + 64), 0, four.shape, four.strides)


def emit_rows(
    e: Emitter,
    one: Fused,
    x: View,
    y: View,
    residual: View | None,
    matrix: NDArray[np.float32],
    bias: NDArray[np.float32],
    channel: NDArray[np.int32],
    shift: NDArray[np.int32],
    positions: int,
    kernel: tuple[int, int] = (1, 1),
) -> None:
    """One step ``product``."""
    rows = rows_of(matrix, e.form)
    act = one.act or Activation()
    ints = [act.number, 0, 0, 0, 0, 0]
    arrays: list[NDArray[np.float32] | NDArray[np.int32]] = [bias.astype(np.float32), channel, shift]
    for part in rows.parts:
        ints += [part.height, part.first, part.groups, part.starts is not None]
        arrays += [a for a in (part.starts, part.index, part.values) if a is not None]
    kind = "linear" if one.node.name in ("linear", "addmm", "lstm", "gru") else f"conv {kernel[0]}x{kernel[1]}"
    label = Label(one.node.path, kind, matrix.shape, rows.density, rows.form, int(matrix.size * positions))
    e.step("product", [x, y] + ([residual] if residual is not None else []), ints, [act.low, act.high, act.a, act.b], arrays, label)


def product(
    e: Emitter, node: Node, x: View, matrix: NDArray[np.float32], bias: NDArray[np.float32] | None, one: Fused | None = None
) -> None:
    """``x @ matrix.T + bias`` over the last dimension of ``x``."""
    one = one or Fused(node, node)
    if bias is None:
        bias = np.zeros(len(matrix), np.float32)
    lead = x.shape[:-1]
    if prod(lead) < _FEW and matrix.shape[1] <= 65536:
        return _vectors(e, one, x, matrix, bias)
    x = _feature_major(e, x)
    strides = tuple(s if n > 1 else 0 for n, s in zip(lead, x.strides[:-1], strict=True))
    out = e.tokens(lead, strides, len(matrix))
    span = View(0, 0, 0, lead, strides).span
    residual = None
    if one.residual is not None:
        r = e.view(one.residual)
        same = r.space == 0 and all(n == 1 or a == b for n, a, b in zip(lead, r.strides[:-1], strides, strict=True)) and r.strides[-1] >= (span + 15) // 16 * 16
        if not same:
            r = e.copy(r, e.tokens(lead, strides, len(matrix)))
        residual = r.with_((len(matrix), span), (r.strides[-1], 1))
    columns = np.arange(matrix.shape[1], dtype=np.int32)
    flat = x.with_((x.shape[-1], span), (x.strides[-1], 1))
    to = out.with_((len(matrix), span), (out.strides[-1], 1))
    emit_rows(e, one, flat, to, residual, matrix, bias, columns, np.zeros_like(columns), prod(lead))
    e.made(one.out, out)
    return None


def _feature_major(e: Emitter, x: View) -> View:
    lead, steps = x.shape[:-1], x.strides[:-1]
    dims = [d for d, n in enumerate(lead) if n > 1]
    span = sum((lead[d] - 1) * steps[d] for d in dims) + 1
    fits = x.space == 0 and dims and min(steps[d] for d in dims) == 1 and span <= 1.3 * prod(lead)
    if fits and (x.strides[-1] >= span or x.shape[-1] == 1):
        return x
    order = sorted(dims, key=lambda d: steps[d] or 1 << 60)
    fresh, step = [0] * len(lead), 1
    for d in order:
        fresh[d] = step
        step *= lead[d]
    return e.copy(x, e.tokens(lead, tuple(fresh), x.shape[-1]))


def _vectors(e: Emitter, one: Fused, x: View, matrix: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    lead, count = x.shape[:-1], prod(x.shape[:-1])
    flat = x.reshaped((count, x.shape[-1]))
    if flat is None or (flat.strides[1] != 1 and x.shape[-1] > 1) or x.space == 2:
        plain = e.copy(x, e.plain(x.shape)).reshaped((count, x.shape[-1]))
        assert plain is not None
        flat = plain
    rows = compressed(matrix, e.values)
    act = one.act or Activation()
    out = e.plain((*lead, len(matrix)))
    to = out.reshaped((count, len(matrix)))
    assert to is not None
    limits = act.low > -math.inf or act.high < math.inf
    alone = one.residual is None and act.name != "none" and not limits
    clips = one.residual is None and limits and act.name == "none"
    number, a, b = (act.number, act.a, act.b) if alone else (1, act.low, act.high) if clips else (0, 0.0, 0.0)
    form = "rows" if rows.index is not None else "dense"
    label = Label(one.node.path, "linear", matrix.shape, float((matrix != 0).mean()), form, int(matrix.size * count))
    e.step("vectors", [flat, to], [rows.kind, rows.index is not None, number], [a, b], [bias.astype(np.float32), *rows.arrays], label)
    if one.residual is not None:
        e.step("binary", [out, e.view(one.residual), out], [PAIRS["add"]], [-math.inf, math.inf])
    if not alone and not clips and (limits or act.name != "none"):
        apply(e, act, out, out)
    e.made(one.out, out)
