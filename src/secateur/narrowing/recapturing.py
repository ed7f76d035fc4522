"""Graphs in files: how a graph was captured, so that loading captures a fresh model alike and narrows that.

A file holds tensors and sizes, never code. The graph is made anew from the original class, and must come out the same, node by node.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.errors import WrongModel
from secateur.examples import Example
from secateur.graphs import as_graph
from secateur.structure import Captured

__all__ = ["captured_from", "recaptured"]


def captured_from(graph: fx.GraphModule, example_inputs: Any) -> Captured | None:
    """How ``graph`` was captured; None where its inputs are more than tensors, which no file holds."""
    example = Example.of(example_inputs)
    named = [*(("", value) for value in example.args), *example.kwargs.items()]
    if not all(isinstance(value, Tensor) for _, value in named):
        return None
    inputs = tuple((name, tuple(v.shape), str(v.dtype).removeprefix("torch.")) for name, v in named)
    return Captured(inputs=inputs, digest=_digest(graph))


def recaptured(model: nn.Module, captured: Captured) -> fx.GraphModule:
    """Capture a fresh model as `captured_from` says.

    Raises:
        WrongModel: the graph is another one.
        UnknownOperation: it cannot be captured.
    """
    device = next((p.device for p in model.parameters()), None)
    made = [(n, torch.zeros(shape, dtype=getattr(torch, kind), device=device)) for n, shape, kind in captured.inputs]
    named = {name: tensor for name, tensor in made if name}
    graph = as_graph(model, named or tuple(tensor for _, tensor in made))
    if _digest(graph) != captured.digest:
        raise WrongModel(
            f"the file holds a narrowed graph, and torch {torch.__version__} captures another one from this "
            f"{type(model).__name__}: pass an instance of the original class and size, with the release of torch that saved the file. To "
            "keep a graph for good, write it with torch.export.save or secateur.export.onnx"
        )
    return graph


def _digest(graph: fx.GraphModule) -> str:
    """Of nodes, their arguments, and all sizes: those that narrowing sets, as they are before."""
    lines = [f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in graph.graph.nodes]
    sizes = [f"{n.target} {getattr(graph, n.target)}" for n in graph.graph.nodes if _is_size(graph, n)]
    return hashlib.sha256("\n".join(lines + sizes).encode()).hexdigest()


def _is_size(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "get_attr" and type(vars(graph).get(str(node.target))) is int
