"""Depthwise and transposed convolutions, and what is left to do after a product."""

import math
from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.emitting import Emitter, Label, Rows
from secateur.runtime.fusing import Fused
from secateur.runtime.graph import Value
from secateur.runtime.ops.elementwise import apply
from secateur.runtime.ops.products import Weights, plane_rows
from secateur.runtime.ops.taps import Taps, back_shifts
from secateur.runtime.planes import plane_shape
from secateur.runtime.pointwise import PAIRS, Activation
from secateur.runtime.views import View

__all__ = ["depthwise", "finish", "transposed"]


def finish(e: Emitter, one: Fused, out: Value) -> None:
    """Add the residual and apply the activation that a product could not take along."""
    if one.residual is None:
        return
    view = e.view(out)
    total = e.plane(out) if e.planes.knows(out) else e.like(view)  # a reader may need zeros around it
    e.step("binary", [view, e.view(one.residual), total], [PAIRS["add"]], [-math.inf, math.inf])
    if one.act is not None:
        apply(e, one.act, total, total)
    one.out.view = total


def depthwise(
    e: Emitter, one: Fused, x: Value, weight: NDArray[np.float32], bias: NDArray[np.float32], t: Taps
) -> None:
    """One input channel for each output channel: channel by channel over all pixels."""
    source, out = e.as_planes(x), e.plane(one.out)
    four = out if len(out.shape) == 4 else out.unsqueezed(2)
    if four.shape[2] == 1:
        pitch = e.planes.pitch(one.out)[0]
        four = four.with_(four.shape, (four.strides[0], four.strides[1], pitch, 1))
        source = source.with_(source.shape, (source.strides[0], source.strides[1], e.planes.pitch(x)[0], 1))
    act = one.act if one.act is not None and one.residual is None else Activation()
    stride = t.stride[1]
    ints = [*t.kernel, stride, t.above, t.left, *t.dilation]
    macs = int(prod(four.shape) * prod(t.kernel))
    label = Label(one.node.path, "depthwise", weight.shape, float((weight != 0).mean()), "dense", macs)
    arrays = [np.ascontiguousarray(weight, np.float32).reshape(-1), bias.astype(np.float32)]
    rows = Rows({0: source, 1: four}, 1, {0: (stride, -t.above, (t.kernel[0] - 1) * t.dilation[0] - t.above)})
    e.step("depthwise", [source, four], ints, [act.low, act.high], arrays, label, rows)
    if act.name != "none":
        apply(e, act, out, out)
    e.made(one.out, out)
    if one.residual is not None:
        finish(e, one, one.out)
        e.made(one.out, e.view(one.out))


def transposed(
    e: Emitter, one: Fused, x: Value, weight: NDArray[np.float32], bias: NDArray[np.float32], t: Taps
) -> None:
    """Output pixel q*s + r of phase r adds up x[q + (r + padding - k*dilation) / s] over the taps k where that is whole."""
    n, _, height, width = plane_shape(one.out.shape)
    (sy, sx), rows = t.stride, weight.shape[1] * t.groups
    source, pitch = e.as_planes(x), e.planes.pitch(x)[0]
    shifts = back_shifts(t)
    matrix = _by_phase(weight, t, shifts, x.shape[1])
    made = Value((n, rows * sy * sx, -(-height // sy), -(-width // sx)), x.dtype)
    e.planes.tie(made, x)
    planes = e.plane(made)
    channel = np.repeat(np.arange(x.shape[1], dtype=np.int32), len(shifts))
    shift = np.tile(np.array([dy * pitch + dx for dy, dx in shifts], np.int32), x.shape[1])
    inner_one = Fused(one.node, one.node, act=one.act if one.residual is None else None)
    plane_rows(
        e,
        inner_one,
        source,
        Weights(
            matrix.reshape(rows * sy * sx, -1),
            np.tile(bias, sy * sx).astype(np.float32),
            channel,
            shift,
            t.kernel,
            (min(dy for dy, _ in shifts), max(dy for dy, _ in shifts)),
        ),
        planes,
    )
    out = e.plane(one.out)
    four = out if len(out.shape) == 4 else out.unsqueezed(2)
    _woven(e, planes, four, (sy, sx))
    e.made(one.out, out)
    finish(e, one, one.out)
    if one.residual is not None:
        e.made(one.out, e.view(one.out))


def _by_phase(
    weight: NDArray[np.float32], t: Taps, shifts: Sequence[tuple[int, int]], channels: int
) -> NDArray[np.float32]:
    """The weights as ``[phases, rows, channels, shifts]``: what each shift of the input adds to the output pixels of each phase.

    Neighbouring rows are of one phase and read the same shifts, so that blocks of rows can leave out the others.
    """
    (sy, sx), per, inner = t.stride, weight.shape[1], channels // t.groups
    place = {s: k for k, s in enumerate(shifts)}
    matrix = np.zeros((sy * sx, per * t.groups, channels, len(shifts)), np.float32)
    for ry, rx, ky, kx in product(range(sy), range(sx), range(t.kernel[0]), range(t.kernel[1])):
        dy, a = divmod(ry + t.above - ky * t.dilation[0], sy)
        dx, b = divmod(rx + t.left - kx * t.dilation[1], sx)
        if a or b:
            continue
        for g in range(t.groups):
            ins = slice(g * inner, (g + 1) * inner)
            matrix[ry * sx + rx, g * per : (g + 1) * per, ins, place[dy, dx]] += weight[ins, :, ky, kx].T
    return matrix


def _woven(e: Emitter, planes: View, out: View, stride: tuple[int, int]) -> None:
    sy, sx = stride
    n, c, height, width = out.shape
    for ry in range(min(sy, height)):
        for rx in range(min(sx, width)):
            shape = (n, c, -(-(height - ry) // sy), -(-(width - rx) // sx))
            target = out.with_(
                shape, (out.strides[0], out.strides[1], out.strides[2] * sy, sx), ry * out.strides[2] + rx
            )
            step = planes.strides[1]
            source = planes.with_(shape, (planes.strides[0], step, *planes.strides[2:]), (ry * sx + rx) * c * step)
            e.copy(source, target)
