"""Attention, lookups, recurrent layers, and products of two activations."""

import math
from collections.abc import Callable
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from secateur.runtime.emitting import Emitter, Label
from secateur.runtime.graph import Node, Value
from secateur.runtime.matrices import compressed
from secateur.runtime.ops.arguments import Unfit, arguments, value
from secateur.runtime.ops.moves import reshaped
from secateur.runtime.ops.products import product
from secateur.runtime.views import View, contiguous

__all__ = ["EMIT"]


def _attention(e: Emitter, node: Node) -> None:
    a = arguments(node)
    views = [_heads(e, value(a[k])) for k in ("query", "key", "value")]
    q, k, v = views
    b, h, t, d = q.shape
    scale = a["scale"] if a["scale"] is not None else 1 / math.sqrt(d)
    lead = (b, h, t, v.shape[3])
    if b * t < 4:
        flat = e.plain((b, t, h, v.shape[3]))
        out = flat.permuted((0, 2, 1, 3))
    else:  # [heads * depth, batch * time]
        wide = e.tokens((b, t), (t, 1), h * v.shape[3])
        step = wide.strides[2]
        out = wide.with_(lead, (t, step * v.shape[3], 1, step))
    causal, cached = bool(a["is_causal"]), False
    if e.cache and causal:
        k, v, cached = _cached(e, k), _cached(e, v), True
    tensors = [q, k, v, out]
    if isinstance(a["attn_mask"], Value):
        tensors.append(_mask(e, a["attn_mask"], (b, h, t, k.shape[2])))
    e.step("attention", tensors, [causal, cached], [scale])
    node.out.view = reshaped(e, out, node.out.shape) if len(node.out.shape) != 4 else out


def _heads(e: Emitter, x: Value) -> View:
    view = e.view(x)
    if len(view.shape) > 4 or len(view.shape) < 2:
        raise Unfit("attention over more than four dimensions")
    while len(view.shape) < 4:
        view = view.unsqueezed(0)
    return view


def _mask(e: Emitter, mask: Value, shape: tuple[int, ...]) -> View:
    if mask.dtype is torch.bool:
        if mask.tensor is None:
            view = e.view(mask)  # once where it is the same for all heads and queries
            small = tuple(1 if step == 0 else size for size, step in zip(view.shape, view.strides, strict=True))
            numbers = [
                View(1, e.constants.number(np.array([n], np.float32)), 0, (), ()).expanded(small)
                for n in (0.0, -math.inf)
            ]
            e.step("where", [view.with_(small, view.strides), *numbers, out := e.plain(small)])
            return out.expanded(view.shape).expanded(shape)
        array = np.where(mask.array != 0, np.float32(0), np.float32(-math.inf)).astype(np.float32)
        mask = Value(mask.shape, torch.float32, tensor=torch.from_numpy(array))
    return e.view(mask).expanded(shape)


def _cached(e: Emitter, x: View) -> View:
    b, g, t, d = x.shape
    whole = View(3, 0, e.state, (b, g, e.cache, d), (g * d * e.cache, d * e.cache, 1, e.cache))
    e.state += b * g * d * e.cache
    del t
    e.step("append", [x, whole])
    return whole


def _lookup(e: Emitter, node: Node) -> None:
    a = arguments(node)
    table, ids = value(a["weight"]), e.view(value(a["indices"]))
    if table.tensor is None:
        raise Unfit("a table that depends on the inputs")
    if ids.space == 2 and isinstance(ids.home, int) and ids.home < e.inputs:
        e.lookups[ids.home] = table.shape[0]
    elif value(a["indices"]).tensor is None:
        raise Unfit("ids that were computed")  # nothing checks their range
    count = prod(ids.shape)
    if count < 4 or len(ids.shape) == 0:
        out = e.plain(node.out.shape)
    else:
        lead = contiguous(ids.shape)
        out = e.tokens(ids.shape, lead, table.shape[1])
    e.step("lookup", [ids, out], [table.shape[0]], [], [table.array.reshape(-1)])
    e.made(node.out, out)


def _matmul(e: Emitter, node: Node) -> None:
    x, y = (value(v) for v in node.args[:2])
    if y.tensor is not None and len(y.shape) == 2 and len(x.shape) >= 2:
        return product(e, node, e.view(x), np.ascontiguousarray(y.array.T), None)
    views = [e.view(v) for v in (x, y)]
    if min(len(v.shape) for v in views) < 2:
        raise Unfit("a product with a vector")
    out = e.plain(node.out.shape)
    lead = node.out.shape[:-2]
    flat = []
    for view in (*views, out):
        wide = view.expanded((*lead, *view.shape[-2:]))
        flat.append(reshaped(e, wide, (prod(lead), *view.shape[-2:])))
    e.step("matmul", flat)
    node.out.view = out
    return None


def _recurrent(e: Emitter, node: Node) -> None:
    lstm = node.name == "lstm"
    x, states, weights, has_bias, layers, _, training, both, batch_first = node.args
    if training or not isinstance(has_bias, bool) or (lstm and len(weights) not in _counts(layers, both, has_bias)):
        raise Unfit("a recurrent layer with projections or in training")
    states = list(states) if lstm else [states]
    view = e.view(x)
    if batch_first:
        view = view.permuted((1, 0, 2))
    finals = [e.plain(out.shape) for out in node.outs[1:]]
    per = 4 if has_bias else 2
    ways = 2 if both else 1
    for layer in range(layers):
        outs = []
        for way in range(ways):
            here = layer * ways + way
            group = weights[here * per : (here + 1) * per]
            start = [e.view(s).with_(s.shape[1:], e.view(s).strides[1:], here * e.view(s).strides[0]) for s in states]
            end = [f.with_(f.shape[1:], f.strides[1:], here * f.strides[0]) for f in finals]
            outs.append(_direction(e, node, view, group, start, end, way == 1))
        view = outs[0] if ways == 1 else _side_by_side(e, outs)
    node.outs[0].view = view.permuted((1, 0, 2)) if batch_first else view
    for out, final in zip(node.outs[1:], finals, strict=True):
        out.view = final


def _counts(layers: int, both: bool, has_bias: bool) -> set[int]:
    return {layers * (2 if both else 1) * (4 if has_bias else 2)}


def _direction(
    e: Emitter, node: Node, x: View, weights: list[Value], start: list[View], end: list[View], backwards: bool
) -> View:
    lstm = node.name == "lstm"
    w_in, w_hidden = (w.array for w in weights[:2])
    zeros: NDArray[np.float32] = np.zeros(len(w_in), np.float32)
    b_in, b_hidden = (w.array for w in weights[2:]) if len(weights) > 2 else (zeros, zeros)
    time, batch, _ = x.shape
    gates = Value((time, batch, len(w_in)), torch.float32)
    product(e, Node(node.name, None, (), {}, [gates], node.path), x, w_in, b_in)
    hidden = w_hidden.shape[1]
    out = e.plain((time, batch, hidden))
    rows = compressed(w_hidden, "float32")
    state = [start[0], start[1] if lstm else start[0], end[0], end[1] if lstm else e.plain(end[0].shape)]
    density = float((w_hidden != 0).mean())
    label = Label(node.path, node.name, w_hidden.shape, density, "rows", int(w_hidden.size * time * batch))
    arrays = [b_hidden, *rows.arrays]
    e.step("recurrent", [e.view(gates), out, *state], [lstm, backwards, rows.form], [], arrays, label)
    return out


def _side_by_side(e: Emitter, parts: list[View]) -> View:
    time, batch, hidden = parts[0].shape
    out = e.plain((time, batch, hidden * len(parts)))
    for k, part in enumerate(parts):
        e.copy(part, out.with_(part.shape, out.strides, k * hidden))
    return out


EMIT: dict[str, Callable[[Emitter, Node], None]] = {
    "scaled_dot_product_attention": _attention,
    "embedding": _lookup,
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "lstm": _recurrent,
    "gru": _recurrent,
}
