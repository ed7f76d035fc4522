"""Products of rows of weights and activations: the step itself, for planes, tokens and single vectors."""

import math
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.emitting import Emitter, Label, Rows
from secateur.runtime.fusing import Fused
from secateur.runtime.graph import Node, Value
from secateur.runtime.matrices import compressed, rows_of
from secateur.runtime.ops.elementwise import apply
from secateur.runtime.pointwise import PAIRS, Activation
from secateur.runtime.views import View

__all__ = ["FEW", "Weights", "plane_rows", "product"]

FEW = 4  # positions below which rows are multiplied by one vector after the other


@dataclass(frozen=True, eq=False)
class Weights:
    """A matrix [rows, columns], its bias, and for each column the channel that it reads and how many floats further on.

    ``reads``: how many rows of planes up and down the columns reach.
    """

    matrix: NDArray[np.float32]
    bias: NDArray[np.float32]
    channel: NDArray[np.int32]
    shift: NDArray[np.int32]
    kernel: tuple[int, int] = (1, 1)
    reads: tuple[int, int] = (0, 0)


def plane_rows(
    e: Emitter,
    one: Fused,
    source: View,
    weights: Weights,
    out: View,
) -> None:
    """The product itself, over every pixel from the first to the last, gaps included."""
    four = out if len(out.shape) == 4 else out.unsqueezed(2)
    positions = (four.shape[0] - 1) * four.strides[0] + (four.shape[2] - 1) * four.strides[2] + four.shape[3]
    if four.shape[2] == 1:
        positions = (four.shape[0] - 1) * four.strides[0] + four.shape[3]
    x = source.with_((source.shape[1], positions), (source.strides[1], 1))
    y = four.with_((len(weights.matrix), positions), (four.strides[1], 1))
    residual = None
    rows = Rows({0: source, 1: four}, 1, {0: (1, *weights.reads)})
    if one.residual is not None:
        r = e.view(one.residual)
        r4 = r if len(r.shape) == 4 else r.unsqueezed(2)
        apart = r4.shape[1] == 1 or r4.strides[1] >= (positions + 15) // 16 * 16  # whole registers are read
        same = (
            r4.space == 0
            and apart
            and all(
                n == 1 or a == b
                for n, a, b in zip(
                    r4.shape, (r4.strides[0], 0, *r4.strides[2:]), (four.strides[0], 0, *four.strides[2:]), strict=True
                )
            )
        )
        if not same:
            r4 = e.copy(
                r4,
                e.plane(Value(one.out.shape, one.out.dtype, need=one.out.need))
                if not e.planes.knows(one.residual)
                else _twin(e, one.out, four),
            )
        residual = r4.with_((len(weights.matrix), positions), (r4.strides[1], 1))
        rows.planes[2], rows.reads[2] = r4, (1, 0, 0)
    spare = four.shape[0] * four.shape[2] * four.shape[3]
    emit_rows(e, one, x, y, residual, weights, spare, rows)


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
    weights: Weights,
    positions: int,
    stripes: Rows | None = None,
) -> None:
    """One step ``product``."""
    rows = rows_of(weights.matrix, e.form)
    act = one.act or Activation()
    ints = [act.number, 0, 0, 0, 0, 0]
    arrays: list[NDArray[np.float32] | NDArray[np.int32]] = [
        weights.bias.astype(np.float32),
        weights.channel,
        weights.shift,
    ]
    for part in rows.parts:
        ints += [part.height, part.first, part.groups, part.starts is not None]
        arrays += [a for a in (part.starts, part.index, part.values) if a is not None]
    kind = (
        "linear"
        if one.node.name in ("linear", "addmm", "lstm", "gru")
        else f"conv {weights.kernel[0]}x{weights.kernel[1]}"
    )
    label = Label(
        one.node.path, kind, weights.matrix.shape, rows.density, rows.form, int(weights.matrix.size * positions)
    )
    e.step(
        "product",
        [x, y] + ([residual] if residual is not None else []),
        ints,
        [act.low, act.high, act.a, act.b],
        arrays,
        label,
        stripes,
    )


def product(
    e: Emitter,
    node: Node,
    x: View,
    matrix: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    one: Fused | None = None,
) -> None:
    """``x @ matrix.T + bias`` over the last dimension of ``x``."""
    one = one or Fused(node, node)
    if bias is None:
        bias = np.zeros(len(matrix), np.float32)
    lead = x.shape[:-1]
    if prod(lead) < FEW and matrix.shape[1] <= 65536:
        return _vectors(e, one, x, matrix, bias)
    x = _feature_major(e, x)
    strides = tuple(s if n > 1 else 0 for n, s in zip(lead, x.strides[:-1], strict=True))
    out = e.tokens(lead, strides, len(matrix))
    span = View(0, 0, 0, lead, strides).span
    residual = None
    if one.residual is not None:
        r = e.view(one.residual)
        same = (
            r.space == 0
            and all(n == 1 or a == b for n, a, b in zip(lead, r.strides[:-1], strides, strict=True))
            and r.strides[-1] >= (span + 15) // 16 * 16
        )
        if not same:
            r = e.copy(r, e.tokens(lead, strides, len(matrix)))
        residual = r.with_((len(matrix), span), (r.strides[-1], 1))
    columns = np.arange(matrix.shape[1], dtype=np.int32)
    flat = x.with_((x.shape[-1], span), (x.strides[-1], 1))
    to = out.with_((len(matrix), span), (out.strides[-1], 1))
    emit_rows(e, one, flat, to, residual, Weights(matrix, bias, columns, np.zeros_like(columns)), prod(lead))
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
    form = ("dense", "rows", "halves")[rows.form]
    label = Label(one.node.path, "linear", matrix.shape, float((matrix != 0).mean()), form, int(matrix.size * count))
    e.step(
        "vectors",
        [flat, to],
        [rows.kind, rows.form, number],
        [a, b],
        [bias.astype(np.float32), *rows.arrays],
        label,
    )
    if one.residual is not None:
        e.step("binary", [out, e.view(one.residual), out], [PAIRS["add"]], [-math.inf, math.inf])
    if not alone and not clips and (limits or act.name != "none"):
        apply(e, act, out, out)
    e.made(one.out, out)
