"""Operations that move elements: most of them only see the same memory otherwise."""

from collections.abc import Callable
from typing import Any

from secateur.runtime.emitting import Emitter
from secateur.runtime.graph import Node, Value
from secateur.runtime.ops.arguments import Unfit, arguments, value
from secateur.runtime.views import View, dense_like

__all__ = ["EMIT", "part", "reshaped"]


def reshaped(e: Emitter, view: View, shape: tuple[int, ...]) -> View:
    """As ``shape``: a view if that is possible, else a copy without gaps, else a row-major one."""
    found = view.reshaped(shape)
    if found is not None:
        return found
    strides = dense_like(view)
    fresh = View(0, 0, 0, view.shape, strides)
    if min(view.strides, default=1) > 0 and fresh.reshaped(shape) is not None:
        dense = e.copy(view, View(0, e.buffer(fresh.span), 0, view.shape, strides)).reshaped(shape)
        assert dense is not None
        return dense
    plain = e.copy(view, e.plain(view.shape)).reshaped(shape)
    assert plain is not None
    return plain


def _clone(e: Emitter, node: Node) -> None:
    node.out.view = e.view(value(arguments(node)["self"]))  # nothing here writes in place


def _reshape(e: Emitter, node: Node) -> None:
    node.out.view = reshaped(e, e.view(value(node.args[0])), node.out.shape)


def _permute(e: Emitter, node: Node) -> None:
    x = e.view(value(node.args[0]))
    dims = len(x.shape)
    if node.name in ("t", "numpy_T"):
        order = list(range(dims))[::-1]
    elif node.name == "permute":
        order = [d % dims for d in arguments(node)["dims"]]
    else:
        order = list(range(dims))
        a, b = (d % dims for d in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    node.out.view = x.permuted(order)


def _unsqueeze(e: Emitter, node: Node) -> None:
    x = e.view(value(node.args[0]))
    node.out.view = x.unsqueezed(node.args[1] % (len(x.shape) + 1))


def _squeeze(e: Emitter, node: Node) -> None:
    x = e.view(value(node.args[0]))
    found = x.reshaped(node.out.shape)
    assert found is not None
    node.out.view = found


def _slice(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = e.view(value(a["self"]))
    dim, step = a["dim"] % len(x.shape), a["step"] or 1
    start = a["start"] or 0
    start = min(max(start + x.shape[dim] if start < 0 else start, 0), x.shape[dim])
    node.out.view = part(x, dim, start, node.out.shape[dim], step)


def part(x: View, dim: int, start: int, size: int, step: int = 1) -> View:
    """Some of the places along one dimension."""
    shape, strides = list(x.shape), list(x.strides)
    shape[dim], offset = size, start * strides[dim]
    strides[dim] *= step
    return x.with_(shape, strides, offset)


def _narrow(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = e.view(value(a["self"]))
    dim = a["dim"] % len(x.shape)
    if not isinstance(a["start"], int):
        raise Unfit("a start that is a tensor")
    node.out.view = part(x, dim, a["start"] % x.shape[dim], node.out.shape[dim])


def _select(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = e.view(value(a["self"]))
    dim = a["dim"] % len(x.shape)
    node.out.view = part(x, dim, a["index"] % x.shape[dim], 1).squeezed(dim)


def _split(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x = e.view(value(a["self"]))
    dim, start = a["dim"] % len(x.shape), 0
    for out in node.outs:
        size = 1 if node.name == "unbind" else out.shape[dim]
        view = part(x, dim, start, size)
        out.view = view.squeezed(dim) if node.name == "unbind" else view
        start += size


def _expand(e: Emitter, node: Node) -> None:
    node.out.view = e.view(value(node.args[0])).expanded(node.out.shape)


def _repeat(e: Emitter, node: Node) -> None:
    x = e.view(value(node.args[0]))
    times = list(arguments(node)["repeats"])
    while len(x.shape) < len(times):
        x = x.unsqueezed(0)
    out = e.plain(node.out.shape)
    shape = [n for t, s in zip(times, x.shape, strict=True) for n in (t, s)]
    source = x.with_(shape, [s for stride in x.strides for s in (0, stride)])
    target = out.reshaped(tuple(shape))
    assert target is not None
    e.copy(source, target)
    node.out.view = out


def _join(e: Emitter, node: Node) -> None:
    a = arguments(node)
    parts = [p for p in a["tensors"] if isinstance(p, Value) and 0 not in p.shape]
    dim = a["dim"] % len(node.out.shape)
    views = [e.view(p) for p in parts]
    if node.name == "stack":
        views = [v.unsqueezed(dim) for v in views]
    out = e.plane(node.out) if e.planes.knows(node.out) else _joined(e, views, node.out.shape, dim)
    start = 0
    for view in views:
        e.copy(view, part(out, dim, start, view.shape[dim]))
        start += view.shape[dim]
    e.made(node.out, out)


def _joined(e: Emitter, views: list[View], shape: tuple[int, ...], dim: int) -> View:
    """Laid out as the largest part is, if the joined dimension can grow there."""
    largest = max(views, key=lambda v: v.size)
    if largest.space != 0 or min(largest.strides, default=1) <= 0:
        return e.plain(shape)
    others = largest.with_(
        [1 if d == dim else n for d, n in enumerate(largest.shape)], largest.strides
    )  # the stride of a single place says nothing of how the others lie
    if largest.strides[dim] >= others.span:  # the outermost one, e.g. channels
        fresh = View(0, 0, 0, shape, largest.strides)
    else:
        fresh = View(0, 0, 0, shape, dense_like(View(0, 0, 0, shape, largest.strides)))
    return View(0, e.buffer(fresh.span), 0, shape, fresh.strides)


def _shuffle(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x, r = e.view(value(a["self"])), a["upscale_factor"]
    n, c, h, w = x.shape
    out = e.plane(node.out) if e.planes.knows(node.out) else e.plain(node.out.shape)
    sn, sc, sh, sw = x.strides
    tn, tc, th, tw = out.strides
    shape = (n, c // (r * r), r, r, h, w)
    source = x.with_(shape, (sn, sc * r * r, sc * r, sc, sh, sw))
    e.copy(source, out.with_(shape, (tn, tc, th, tw, th * r, tw * r)))
    e.made(node.out, out)


def _channel_shuffle(e: Emitter, node: Node) -> None:
    a = arguments(node)
    x, groups = e.view(value(a["self"])), a["groups"]
    n, c, *rest = x.shape
    sn, sc, *steps = x.strides
    turned = x.with_((n, c // groups, groups, *rest), (sn, sc, sc * (c // groups), *steps))
    node.out.view = reshaped(e, turned, node.out.shape)


EMIT: dict[str, Callable[[Emitter, Node], Any]] = {
    **dict.fromkeys(["clone", "lift_fresh_copy"], _clone),
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"], _reshape),
    **dict.fromkeys(["permute", "transpose", "t", "numpy_T", "swapaxes"], _permute),
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "unbind"], _split),
    **dict.fromkeys(["cat", "concat", "stack"], _join),
    **dict.fromkeys(["expand", "expand_as"], _expand),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "repeat": _repeat,
    "pixel_shuffle": _shuffle,
    "channel_shuffle": _channel_shuffle,
}
