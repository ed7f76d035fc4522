"""Which operations become one product: a convolution or linear layer with the batch norm, the sum and the activation that follow it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.graph import Graph, Node, Value
from secateur.runtime.pointwise import Activation, activation_of

__all__ = ["PRODUCTS", "Fused", "fused"]

PRODUCTS = frozenset(["conv1d", "conv2d", "convolution", "linear", "addmm", "conv_transpose1d", "conv_transpose2d"])


@dataclass(eq=False)
class Fused:
    """A product and what is done to its result before it is stored.

    Args:
        node: the convolution or linear layer.
        last: the last operation that is part of it; the product is computed in its place.
        scale, shift: of a batch norm, for each row.
        residual: what is added.
        act: the activation, in the end.
    """

    node: Node
    last: Node
    scale: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None
    residual: Value | None = None
    act: Activation | None = None

    @property
    def out(self) -> Value:
        """Where the result goes."""
        return self.last.out


def fused(graph: Graph) -> tuple[dict[Node, Fused], set[Node]]:
    """The products by their last operation, and the nodes that are part of one and need no step of their own."""
    outputs = set(graph.outputs)
    place = {node: k for k, node in enumerate(graph.nodes)}
    taken: set[Node] = set()
    found: dict[Node, Fused] = {}
    for node in graph.nodes:
        if node.name not in PRODUCTS or not isinstance(node.args[1], Value) or node in taken:
            continue
        one = Fused(node, node)
        while one.act is None and len(one.out.users) == 1 and one.out not in outputs:
            if not _absorb(one, one.out.users[0], taken, place):
                break
            taken.add(one.last)
        if one.last is not node:
            taken.add(node)
            taken.discard(one.last)
        found[one.last] = one
    return found, taken


def _absorb(one: Fused, node: Node, taken: set[Node], place: dict[Node, int]) -> bool:
    if node in taken:
        return False
    if node.name == "batch_norm" and one.scale is None and one.residual is None and one.node.name != "linear":
        return _norm(one, node)
    if node.name == "add" and one.residual is None:
        return _sum(one, node, place)
    act = activation_of(node)
    if act is None or node.args[0] is not one.out:
        return False
    one.act, one.last = act, node
    return True


def _norm(one: Fused, node: Node) -> bool:
    x, weight, bias, mean, var, training, _, eps, *_ = node.args
    if x is not one.out or training or mean is None:
        return False
    scale = 1 / np.sqrt(var.array.astype(np.float64) + eps)
    if weight is not None:
        scale = scale * weight.array
    shift = -mean.array * scale
    if bias is not None:
        shift = shift + bias.array
    one.scale, one.shift, one.last = scale.astype(np.float32), shift.astype(np.float32), node
    return True


def _sum(one: Fused, node: Node, place: dict[Node, int]) -> bool:
    a, b = node.args[:2]
    other = b if a is one.out else a
    if not isinstance(other, Value) or other is one.out or other.tensor is not None or node.kwargs.get("alpha", 1) != 1:
        return False
    if other.shape != node.out.shape or one.out.shape != node.out.shape:
        return False
    if other.node is not None and place[other.node] > place[node]:
        return False
    one.residual, one.last = other, node
    return True
