"""Sums, means, extremes and lengths over some dimensions."""

import math
from collections.abc import Callable
from functools import partial

from secateur.runtime.emitting import Emitter
from secateur.runtime.graph import Node
from secateur.runtime.ops.arguments import Unfit, arguments, value
from secateur.runtime.ops.elementwise import apply
from secateur.runtime.pointwise import PAIRS, Activation
from secateur.runtime.views import View

__all__ = ["EMIT"]

_SUM, _MEAN, _MOST, _LEAST = range(4)  # as the engine numbers them


def _reduce(e: Emitter, node: Node, how: int) -> None:
    e.made(node.out, _reduced(e, node, e.view(value(arguments(node)["self"])), how))


def _reduced(e: Emitter, node: Node, x: View, how: int) -> View:
    a = arguments(node)
    dims = a.get("dim")
    dims = list(range(len(x.shape))) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
    gone = {d % len(x.shape) for d in dims}
    out = e.plain(node.out.shape)
    kept = out
    if not a.get("keepdim"):
        for d in sorted(gone):
            kept = kept.unsqueezed(d)
    spread = kept.with_(x.shape, [0 if d in gone else s for d, s in enumerate(kept.strides)])
    e.step("reduce", [x, spread], [how])
    return out


def _vector_norm(e: Emitter, node: Node) -> None:
    a = arguments(node)
    order = a["ord"]
    if order not in (1, 2, math.inf):
        raise Unfit(f"a norm of order {order}")
    x = e.view(value(a["self"]))
    parts = e.plain(x.shape)
    if order == 2:
        e.step("binary", [x, x, parts], [PAIRS["mul"]], [-math.inf, math.inf])
    else:
        apply(e, Activation("abs"), x, parts)
    total = _reduced(e, node, parts, _MOST if order == math.inf else _SUM)
    if order == 2:
        apply(e, Activation("sqrt"), total, out := e.plain(node.out.shape))
        total = out
    e.made(node.out, total)


def _global_pool(e: Emitter, node: Node) -> None:
    a = arguments(node)
    size = a["output_size"]
    x = value(a["self"])
    if any(n != 1 for n in ([size] if isinstance(size, int) else size)):
        if tuple(x.shape[-len(size) :]) == tuple(size):
            node.out.view = e.view(x)
            return
        raise Unfit("an adaptive pooling to more than one pixel")
    view = e.view(x)
    out = e.plain(node.out.shape)
    spread = out.with_(view.shape, (*out.strides[:2], *(0 for _ in view.shape[2:])))
    e.step("reduce", [view, spread], [_MEAN])
    e.made(node.out, out)


EMIT: dict[str, Callable[[Emitter, Node], None]] = {
    "sum": partial(_reduce, how=_SUM),
    "mean": partial(_reduce, how=_MEAN),
    "amax": partial(_reduce, how=_MOST),
    "amin": partial(_reduce, how=_LEAST),
    "linalg_vector_norm": _vector_norm,
    "adaptive_avg_pool1d": _global_pool,
    "adaptive_avg_pool2d": _global_pool,
}
