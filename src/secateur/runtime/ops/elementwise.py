"""Elementwise operations. Where all operands lie alike, gaps are computed along: one long run is faster than many short ones."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from secateur.runtime.emitting import Emitter, Rows
from secateur.runtime.graph import Node, Value
from secateur.runtime.ops.arguments import Unfit, arguments, value
from secateur.runtime.pointwise import PAIRS, Activation, activation_of
from secateur.runtime.views import View

__all__ = ["EMIT", "apply", "runs"]


def runs(views: Sequence[View]) -> list[View]:
    """The same elements, and the gaps between them, as [channels, run], if every operand allows it; the first one is written."""
    first = views[0]
    dims = [d for d, n in enumerate(first.shape) if n > 1]
    if len(dims) < 2 or first.space != 0 or min(first.strides[d] for d in dims) != 1:
        return list(views)
    outer = max(dims, key=lambda d: first.strides[d])
    rest = [d for d in dims if d != outer]
    span = sum((first.shape[d] - 1) * first.strides[d] for d in rest) + 1
    channels = first.shape[outer]
    if span > first.strides[outer] or span * channels > 1.4 * first.size:
        return list(views)
    steps = []
    for view in views:
        same = all(view.strides[d] == first.strides[d] for d in rest)
        if not (same and view.space == 0) and any(view.strides[d] for d in rest):
            return list(views)
        steps.append(1 if same else 0)
    return [v.with_((channels, span), (v.strides[outer], s)) for v, s in zip(views, steps, strict=True)]


def apply(e: Emitter, act: Activation, source: View, target: View) -> None:
    """Write ``act`` of ``source`` to ``target``."""
    plain, limited = act.name != "none", act.low > -math.inf or act.high < math.inf
    out, x = runs([target, source])
    rows = _rows([source, target])
    if limited or not plain:
        e.step("unary", [x, out], [1], [act.low, act.high], rows=rows)
        x, rows = out, _rows([target, target])
    if plain:
        e.step("unary", [x, out], [act.number], [act.a, act.b], rows=rows)


def _rows(views: list[View]) -> Rows | None:
    """Row r of the last one is made of row r of the others, or of what is the same for all pixels."""
    out = views[-1]
    if len(out.shape) != 4 or out.space != 0:
        return None
    moving = {k: v for k, v in enumerate(views) if v.space == 0 and (v.strides[2] or v.strides[3])}
    still = [v for k, v in enumerate(views) if k not in moving]
    if any(v.strides[2] or v.strides[3] or (v.strides[0] and v.shape[0] > 1) for v in still):
        return None
    last = len(views) - 1
    return Rows(moving, last, {k: (1, 0, 0) for k in moving if k != last})


def _unary(e: Emitter, node: Node) -> None:
    act = activation_of(node)
    if act is None:
        raise Unfit("this form is not known")
    x = e.view(value(node.args[0]))
    out = _place(e, node.out, [x])
    apply(e, act, x, out)
    e.made(node.out, out)


def _place(e: Emitter, out: Value, operands: list[View]) -> View:
    if e.planes.knows(out):
        return e.plane(out)
    whole = [v for v in operands if v.shape == out.shape and v.space == 0]
    return e.like(max(whole, key=lambda v: v.span <= 1.5 * v.size + 64)) if whole else e.plain(out.shape)


def _operand(e: Emitter, thing: Any, shape: tuple[int, ...]) -> View:
    if not isinstance(thing, Value):
        number = float(thing)
        home = e.constants.number(np.array([number], np.float32))
        return View(1, home, 0, (), ()).expanded(shape)
    return e.view(thing).expanded(shape)


def _binary(e: Emitter, node: Node, what: str, *, swap: bool = False) -> None:
    a = arguments(node)
    left, right = a["self"], a["other"]
    if a.get("rounding_mode"):
        raise Unfit("rounding after a division")
    alpha = a.get("alpha", 1)
    if what in ("add", "sub", "mul", "div") and isinstance(left, Value) and not isinstance(right, Value):
        return _scalar(e, node, what, left, float(right) * (alpha if alpha is not None else 1), swap=swap)
    if alpha not in (None, 1):
        raise Unfit("a sum with a factor")
    if swap:
        left, right = right, left
    x, y = _operand(e, left, node.out.shape), _operand(e, right, node.out.shape)
    out = _place(e, node.out, [x, y])
    views = runs([out, x, y])
    e.step("binary", [views[1], views[2], views[0]], [PAIRS[what]], [-math.inf, math.inf], rows=_rows([x, y, out]))
    e.made(node.out, out)
    return None


def _scalar(e: Emitter, node: Node, what: str, left: Value, number: float, *, swap: bool) -> None:
    scale, shift = {"add": (1.0, number), "sub": (1.0, -number), "mul": (number, 0.0)}.get(
        what, (1 / number if number else math.inf, 0.0)
    )
    if swap:
        if what != "sub":
            raise Unfit("a reversed operation with a number")
        scale, shift = -1.0, number
    x = e.view(left)
    out = _place(e, node.out, [x])
    apply(e, Activation("affine", a=scale, b=shift), x, out)
    e.made(node.out, out)


def _prelu(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x, weight = e.view(value(a["self"])), e.view(value(a["weight"]))
    if weight.shape != (1,):
        weight = weight.with_(
            (weight.shape[0],) + (1,) * (len(x.shape) - 2), weight.strides + (0,) * (len(x.shape) - 2)
        )
    out = _place(e, node.out, [x])
    views = runs([out, x, weight.expanded(x.shape)])
    e.step("binary", [views[1], views[2], views[0]], [PAIRS["prelu"]], [-math.inf, math.inf])
    e.made(node.out, out)


def _where(e: Emitter, node: Node) -> None:
    a = arguments(node)
    if node.name == "masked_fill":
        condition, x, y = a["mask"], a["value"], a["self"]
    else:
        condition, x, y = a["condition"], a["self"], a["other"]
    views = [_operand(e, thing, node.out.shape) for thing in (condition, x, y)]
    out = _place(e, node.out, views)
    e.step("where", [*views, out])
    e.made(node.out, out)


def _cast(e: Emitter, node: Node) -> None:
    x = value(node.args[0])
    if x.dtype.is_floating_point and not node.out.dtype.is_floating_point:
        raise Unfit("a cast that rounds")
    node.out.view = e.view(x)
    if node.out.dtype is torch.bool and x.dtype is not torch.bool:
        raise Unfit("a cast to truth values")


def _not(e: Emitter, node: Node) -> None:
    x = e.view(value(node.args[0]))
    if node.args[0].dtype is not torch.bool:
        raise Unfit("bits of integers")
    out = e.like(x)
    apply(e, Activation("affine", a=-1.0, b=1.0), x, out)
    e.made(node.out, out)


_UNARY = (
    "relu relu6 hardtanh clamp clamp_min clamp_max silu sigmoid tanh hardswish hardsigmoid exp neg sqrt rsqrt abs erf log sin cos "
    "reciprocal mish gelu elu softplus leaky_relu"
)
_BINARY = {
    "add": "add", "sub": "sub", "mul": "mul", "div": "div", "maximum": "max", "minimum": "min", "lt": "lt", "le": "le", "gt": "gt",
    "ge": "ge", "eq": "eq", "ne": "ne", "logical_and": "mul", "bitwise_and": "mul", "__and__": "mul",
}  # fmt: skip


def _pow(e: Emitter, node: Node) -> None:
    power = node.args[1] if node.name == "pow" else 2
    if not isinstance(power, int | float) or not isinstance(node.args[0], Value):
        raise Unfit("a power that is a tensor")
    x = e.view(node.args[0])
    out = _place(e, node.out, [x])
    if power == 2:
        views = runs([out, x])
        e.step("binary", [views[1], views[1], views[0]], [PAIRS["mul"]], [-math.inf, math.inf])
    else:
        apply(e, Activation("power", a=float(power)), x, out)
    e.made(node.out, out)


EMIT: dict[str, Callable[[Emitter, Node], None]] = {
    **dict.fromkeys(_UNARY.split(), _unary),
    **{name: partial(_binary, what=what) for name, what in _BINARY.items()},
    "rsub": partial(_binary, what="sub", swap=True),
    "pow": _pow,
    "square": _pow,
    "prelu": _prelu,
    "where": _where,
    "masked_fill": _where,
    "to": _cast,
    "_to_copy": _cast,
    "type_as": _cast,
    "logical_not": _not,
    "bitwise_not": _not,
}
