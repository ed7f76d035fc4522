"""Operations that put things into places: rolling, rows by number, writing into a slice."""

from collections.abc import Callable

import torch

from secateur.runtime.emitting import Emitter
from secateur.runtime.graph import Node, Value
from secateur.runtime.ops.arguments import Unfit, arguments, value
from secateur.runtime.ops.moves import part, reshaped

__all__ = ["EMIT"]


def _roll(e: Emitter, node: Node) -> None:
    a = arguments(node)
    source, dims = e.view(value(a["self"])), list(a["dims"])
    if not dims:
        raise Unfit("rolling a flattened tensor")
    for dim, shift in zip(dims, a["shifts"], strict=True):
        size = source.shape[dim]
        k, out = shift % size, e.like(source)
        if k:
            e.copy(part(source, dim, 0, size - k), part(out, dim, k, size - k))
            e.copy(part(source, dim, size - k, k), part(out, dim, 0, k))
            source = out
    node.out.view = source


def _index(e: Emitter, node: Node) -> None:
    """Rows of a constant by a tensor of numbers that is an input: a lookup."""
    a = arguments(node)
    table, ids = value(a["self"]), a["indices"]
    if table.tensor is None or len(ids) != 1 or not isinstance(ids[0], Value) or len(table.shape) < 2:
        raise Unfit("indices other than numbers of rows of a constant")
    view, rows = e.view(ids[0]), table.array.reshape(table.shape[0], -1)
    if ids[0].dtype is torch.bool or view.space != 2 or not isinstance(view.home, int) or view.home >= e.inputs:
        raise Unfit("indices that were computed")
    e.lookups[view.home] = table.shape[0]
    out = e.plain((*view.shape, rows.shape[1]))
    e.step("lookup", [view, out], [table.shape[0]], [], [rows.reshape(-1)])
    node.out.view = reshaped(e, out, node.out.shape)


def _written_slice(e: Emitter, node: Node) -> None:
    a = arguments(node)
    whole, source = e.view(value(a["self"])), e.view(value(a["src"]))
    dim = a.get("dim", 0) % len(whole.shape)
    if node.name == "select_scatter":
        source, start, step = source.unsqueezed(dim), a["index"] % whole.shape[dim], 1
    else:
        start, step = a["start"] or 0, a["step"]
        start = min(max(start + whole.shape[dim] if start < 0 else start, 0), whole.shape[dim])
    out = e.copy(whole, e.like(whole))
    e.copy(source, part(out, dim, start, source.shape[dim], step))
    node.out.view = out


def _interleaved(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x, times, dim = value(a["self"]), a["repeats"], a["dim"]
    if not isinstance(times, int) or dim is None:
        raise Unfit("repeats that differ")
    view, dim = e.view(x), dim % len(x.shape)
    wide = view.unsqueezed(dim + 1)
    shape = (*wide.shape[: dim + 1], times, *wide.shape[dim + 2 :])
    node.out.view = reshaped(e, wide.expanded(shape), node.out.shape)


def _copied(e: Emitter, node: Node) -> None:
    node.out.view = e.view(value(node.args[1])).expanded(node.out.shape)


EMIT: dict[str, Callable[[Emitter, Node], None]] = {
    "roll": _roll,
    "index": _index,
    "slice_scatter": _written_slice,
    "select_scatter": _written_slice,
    "copy": _copied,
    "repeat_interleave": _interleaved,
}
