"""From a graph to a program: what is fused, where everything lies, which steps run, and how long each buffer is needed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from secateur.runtime.emitting import Constants, Emitter
from secateur.runtime.fusing import Fused, fused
from secateur.runtime.graph import Graph, Node, Value, values_in
from secateur.runtime.ops import EMIT, Unfit, convolutions, taps
from secateur.runtime.payoff import chosen
from secateur.runtime.planes import Planes
from secateur.runtime.striping import striped
from secateur.runtime.views import Buffer, View

__all__ = ["program"]

_TYPES = {
    torch.float32: "float32",
    torch.int64: "int64",
    torch.bool: "bool",
    torch.float64: "float64",
    torch.int32: "int32",
}


def program(
    graph: Graph,
    constants: Constants,
    *,
    size: int,
    splits: Sequence[bool],
    values: str,
    form: str | None,
    cache: int,
    threads: int,
    width: int,
    stripes: bool | int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The program of one batch size as a JSON document, and what the report says about its steps."""
    planes = Planes()
    e = Emitter(constants, planes, values=values, form=form, cache=cache)
    last, inner = fused(graph)
    _prepare(e, graph, {one.node for one in last.values()})
    inputs = [_input(e, value, split) for value, split in zip(graph.inputs, splits, strict=True)]
    e.inputs = len(inputs)
    outputs = [e.slot(value.shape) for value in graph.outputs]
    for node in graph.nodes:
        if node in last and node not in inner:
            _product(e, last[node])
        elif node not in inner:
            _run(e, node, partial(_plain, e, node))
    e.path = ""
    for value, slot in zip(graph.outputs, outputs, strict=True):
        e.copy(e.view(value), slot)
    for k, rows in e.lookups.items():
        inputs[k]["rows"] = rows
    local = striped(e, chosen(e, stripes, threads, width))
    document = _document(e, graph, inputs) | {"size": size, "local": local}
    labels = [vars(e.labels[k]) for k in range(len(e.steps))]
    return document, {"labels": labels, "notes": e.notes}


def _document(e: Emitter, graph: Graph, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """The program as JSON has it, its buffers in their places."""
    arena = _placed([v.home for s in e.steps for v in s[1] if isinstance(v.home, Buffer) and v.space == 0])
    steps = [
        [kind, [_written(v) for v in views], ints, numbers, arrays] for kind, views, ints, numbers, arrays in e.steps
    ]
    outputs = [{"shape": list(v.shape), "dtype": _type(v)} for v in graph.outputs]
    return {
        "arena": arena,
        "state": e.state,
        "inputs": inputs,
        "outputs": outputs,
        "outside": e.outside,
        "steps": steps,
    }


def _prepare(e: Emitter, graph: Graph, products: set[Node]) -> None:
    for node in graph.nodes:
        if node in products and "conv" in node.name:
            try:
                taps.prepare(e, node)
            except Unfit:
                continue
    for _ in range(2):  # forwards, and again for what was tied later
        for node in graph.nodes:
            e.planes.follow(node)


def _input(e: Emitter, value: Value, split: bool) -> dict[str, Any]:
    value.view = e.slot(value.shape)
    return {"shape": list(value.shape), "dtype": _type(value), "split": bool(split)}


def _product(e: Emitter, one: Fused) -> None:
    """A product with what was fused into it; where it does not fit, all parts by themselves."""
    e.path = one.node.path
    before = len(e.steps)
    try:
        convolutions.emit(e, one)
    except Unfit as reason:
        del e.steps[before:]
        _in_torch(e, one.node, str(reason))
        for part in one.parts[1:]:
            _run(e, part, partial(_plain, e, part))


def _run(e: Emitter, node: Node, work: Callable[[], None]) -> None:
    e.path = node.path
    before = len(e.steps)
    try:
        work()
    except Unfit as reason:
        del e.steps[before:]
        _in_torch(e, node, str(reason))


def _plain(e: Emitter, node: Node) -> None:
    emit = EMIT.get(node.name)
    if emit is None:
        raise Unfit("the engine has no steps for it")
    emit(e, node)


def _in_torch(e: Emitter, node: Node, reason: str) -> None:
    """Run an operation in torch, between slots."""
    if not node.outs or any(v.dtype not in _TYPES for v in [*values_in([node.args, node.kwargs]), *node.outs]):
        raise NotImplementedError(f"{node.target} at {node.path!r}: {reason}, and its types cannot leave the engine")
    inputs = [v for v in values_in([node.args, node.kwargs]) if v.tensor is None]
    places = {v: k for k, v in enumerate(dict.fromkeys(inputs))}
    other: dict[str, Any] = {"name": str(node.target), "path": node.path, "reason": reason, "inputs": [], "outputs": []}
    try:
        other["args"], other["kwargs"] = _spelled(e, list(node.args), places), _spelled(e, node.kwargs, places)
    except NotImplementedError as error:
        raise NotImplementedError(f"{node.target} at {node.path!r}: {reason}, and {error}") from None
    sources = [(v, e.view(v)) for v in places]
    for value, view in sources:
        slot = e.slot(value.shape)
        e.copy(view, slot)
        other["inputs"].append({"shape": list(value.shape), "dtype": _type(value)})
    results = [e.slot(out.shape) for out in node.outs]
    e.step("outside", [], [len(e.outside)])
    for out, slot in zip(node.outs, results, strict=True):
        other["outputs"].append({"shape": list(out.shape), "dtype": _type(out)})
        out.view = slot
    e.outside.append(other)
    e.notes.append(f"{node.target} at {node.path or 'the model itself'} runs in torch: {reason}")


def _spelled(e: Emitter, tree: Any, places: dict[Value, int]) -> Any:
    if isinstance(tree, Value):
        if tree.tensor is None:
            return {"input": places[tree]}
        return {"constant": e.constants.number(tree.array), "shape": list(tree.shape), "dtype": _type(tree)}
    if isinstance(tree, list | tuple):
        return [_spelled(e, leaf, places) for leaf in tree]
    if isinstance(tree, dict):
        return {"dict": {key: _spelled(e, leaf, places) for key, leaf in tree.items()}}
    if isinstance(tree, torch.device):
        return {"device": "cpu"}
    if isinstance(tree, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(tree).removeprefix("torch.")}
    if isinstance(tree, float):
        return {"float": str(tree)}
    if tree is not None and not isinstance(tree, bool | int | str):
        raise NotImplementedError(f"an argument of type {type(tree).__name__} cannot be written down")
    return tree


def _type(value: Value) -> str:
    if value.dtype not in _TYPES:
        raise NotImplementedError(
            f"tensors of {value.dtype} are not compiled; convert the model and its inputs to float32"
        )
    return _TYPES[value.dtype]


def _written(view: View) -> list[Any]:
    buffer = view.home if isinstance(view.home, Buffer) else None
    offset = view.offset + (buffer.offset if buffer else 0)
    home = 0 if isinstance(view.home, Buffer) else view.home
    return [view.space, home, offset, list(view.shape), list(view.strides), *(view.moves if any(view.moves) else ())]


def _placed(buffers: list[Buffer]) -> int:
    """First fit, the largest first: buffers that are needed at the same time do not overlap. Returns the size of the arena."""
    done: list[Buffer] = []
    total = 0

    def size(buffer: Buffer) -> int:
        return buffer.before + buffer.size + buffer.after

    for buffer in sorted(dict.fromkeys(buffers), key=lambda b: (-size(b), b.first)):
        at = 0
        for other in sorted(
            (o for o in done if o.first <= buffer.last and buffer.first <= o.last), key=lambda o: o.offset
        ):
            if at + size(buffer) <= other.offset - other.before:
                break
            at = max(at, other.offset + other.size + other.after)
        buffer.offset = at + buffer.before
        done.append(buffer)
        total = max(total, at + size(buffer))
    return total
