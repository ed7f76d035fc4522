"""What is compiled: values, and the operations of one exported run in order. Constants are values that are known already."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secateur.runtime.views import View

__all__ = ["Graph", "Node", "Value", "values_in"]


@dataclass(eq=False)
class Value:
    """A tensor of the graph.

    Args:
        shape, dtype: as torch has them.
        tensor: what it is, if it does not depend on the inputs.
        view: where it lies, once that is decided.
        users: the nodes that read it.
        need: rows above and below, columns left and right, that must be zero around it for the convolutions that read it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor: torch.Tensor | None = None
    view: View | None = None
    users: "list[Node]" = field(default_factory=list)
    need: tuple[int, int, int, int] = (0, 0, 0, 0)
    node: "Node | None" = None

    @property
    def array(self) -> NDArray[np.float32]:
        """A constant as float32."""
        assert self.tensor is not None
        return np.ascontiguousarray(self.tensor.detach().to(torch.float32).numpy())

    def asks(self, need: tuple[int, int, int, int]) -> None:
        """Note that a reader needs zeros around it."""
        top, bottom, left, right = (max(a, b) for a, b in zip(self.need, need, strict=True))
        self.need = (top, bottom, left, right)


@dataclass(eq=False)
class Node:
    """One operation.

    Args:
        name: ``conv2d`` for ``aten.conv2d.default``.
        target: the operation itself, for those that run in torch.
        args, kwargs: as exported, with values in the place of tensors.
        outs: what it makes.
        path: the module that it belongs to.
    """

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: list[Value]
    path: str

    @property
    def out(self) -> Value:
        """Of operations that make one value."""
        return self.outs[0]


@dataclass
class Graph:
    """One exported run."""

    nodes: list[Node]
    inputs: list[Value]
    outputs: list[Value]
    result: Any  # how the outputs are nested


def values_in(tree: Any) -> Iterator[Value]:
    """The values among arguments."""
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, list | tuple):
        for leaf in tree:
            yield from values_in(leaf)
    elif isinstance(tree, dict):
        yield from values_in(list(tree.values()))
