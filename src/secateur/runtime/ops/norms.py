"""Normalisations and softmax. Features lie apart and positions side by side, so statistics of many positions are taken at once."""

from collections.abc import Callable
from math import prod

import numpy as np
import torch

from secateur.runtime.emitting import Emitter
from secateur.runtime.graph import Node, Value
from secateur.runtime.ops.arguments import Unfit, arguments, value
from secateur.runtime.ops.moves import reshaped
from secateur.runtime.views import View

__all__ = ["EMIT"]


def _layer_norm(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = e.view(value(a["input"]))
    size = tuple(a["normalized_shape"])
    if len(size) > 1:
        x = reshaped(e, x, (*x.shape[: -len(size)], prod(size)))
    out = e.like(x)
    weight, bias = a.get("weight"), a.get("bias")
    centred = node.name == "layer_norm"
    eps = a["eps"] if a["eps"] is not None else torch.finfo(torch.float32).eps
    arrays = [v.array.reshape(-1) for v in (weight, bias) if isinstance(v, Value)]
    e.step("norm", [*_spanned(x, out)], [centred, weight is not None, bias is not None], [eps], arrays)
    node.out.view = reshaped(e, out, node.out.shape)


def _spanned(x: View, out: View) -> tuple[View, View]:
    """[positions, features] with the gaps between positions computed along, where both lie alike."""
    lead, steps = x.shape[:-1], x.strides[:-1]
    dims = [d for d, n in enumerate(lead) if n > 1]
    if len(dims) < 2 or steps != out.strides[:-1] or min(steps[d] for d in dims) != 1 or x.space != 0:
        return x, out
    span = sum((lead[d] - 1) * steps[d] for d in dims) + 1
    if span > 1.3 * prod(lead) or span > min(x.strides[-1], out.strides[-1]):
        return x, out
    return x.with_((span, x.shape[-1]), (1, x.strides[-1])), out.with_((span, x.shape[-1]), (1, out.strides[-1]))


def _group_norm(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = value(a["input"])
    groups = a["num_groups"] if node.name == "group_norm" else x.shape[1]
    if node.name == "instance_norm" and not a["use_input_stats"]:
        raise Unfit("instance norm with running statistics")
    weight, bias = a.get("weight"), a.get("bias")
    arrays = []
    if weight is not None or bias is not None:
        arrays = [
            weight.array if isinstance(weight, Value) else np.ones(x.shape[1], np.float32),
            bias.array if isinstance(bias, Value) else np.zeros(x.shape[1], np.float32),
        ]
    view = e.view(x)
    out = e.plane(node.out) if e.planes.knows(node.out) else e.like(view)
    e.step("group_norm", [view, out], [groups, bool(arrays)], [a["eps"]], arrays)
    e.made(node.out, out)


def _batch_norm(e: Emitter, node: Node) -> None:
    a = arguments(node)
    if a["training"] or a["running_mean"] is None:
        raise Unfit("batch norm in training")
    scale = 1 / np.sqrt(a["running_var"].array.astype(np.float64) + a["eps"])
    if isinstance(a["weight"], Value):
        scale = scale * a["weight"].array
    shift = -a["running_mean"].array * scale
    if isinstance(a["bias"], Value):
        shift = shift + a["bias"].array
    x = e.view(value(a["input"]))
    out = e.plane(node.out) if e.planes.knows(node.out) else e.like(x)
    operands = []
    for array in (scale, shift):
        one = View(1, e.constants.number(array.astype(np.float32)), 0, (len(array),), (1,))
        operands.append(
            one.with_((len(array),) + (1,) * (len(x.shape) - 2), (1,) + (0,) * (len(x.shape) - 2)).expanded(x.shape)
        )
    infinite = [-np.inf, np.inf]
    e.step("binary", [x, operands[0], out], [2], infinite)
    e.step("binary", [out, operands[1], out], [0], infinite)
    e.made(node.out, out)


def _softmax(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = e.view(value(a["self"]))
    dim = a["dim"] % len(x.shape)
    order = [d for d in range(len(x.shape)) if d != dim] + [dim]
    out = e.like(x)
    e.step("softmax", [x.permuted(order), out.permuted(order)])
    node.out.view = out


EMIT: dict[str, Callable[[Emitter, Node], None]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _group_norm,
    "batch_norm": _batch_norm,
    "softmax": _softmax,
    "_softmax": _softmax,
}
