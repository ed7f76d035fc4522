"""Which operations become one product: a convolution or linear layer with the batch norm, the sum and the activation that follow it."""

from dataclasses import dataclass, field

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
        parts: all operations that are in it, in order.
    """

    node: Node
    last: Node
    scale: NDArray[np.float32] | None = None
    shift: NDArray[np.float32] | None = None
    residual: Value | None = None
    act: Activation | None = None
    parts: list[Node] = field(default_factory=list)

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
        if node.name not in PRODUCTS or not _is_fixed(node) or node in taken:
            continue
        one = Fused(node, node, parts=[node])
        while one.act is None and len(one.out.users) == 1 and one.out not in outputs:
            after = one.out.users[0]
            if after in taken or after in found or not _absorb(one, after, place):
                break  # of two products that are added, one takes up the sum
            taken.add(one.last)
            one.parts.append(one.last)
        if one.last is not node:
            taken.add(node)
            taken.discard(one.last)
        found[one.last] = one
    return found, taken


def _is_fixed(node: Node) -> bool:
    """Whether the weight, and the bias if there is one, do not depend on the inputs."""
    places = (0, 2) if node.name == "addmm" else (1, 2)
    given = [node.args[k] for k in places if k < len(node.args)]
    given += [node.kwargs[name] for name in ("weight", "bias") if name in node.kwargs]
    tensors = [v for v in given if isinstance(v, Value)]
    return bool(tensors) and all(v.tensor is not None for v in tensors)


def _absorb(one: Fused, node: Node, place: dict[Node, int]) -> bool:
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
    fixed = [v for v in (weight, bias, mean, var) if v is not None]
    if x is not one.out or training or mean is None or any(v.tensor is None for v in fixed):
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
