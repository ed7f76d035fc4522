"""The arguments of a node by the names that the operation's schema gives them."""

from typing import Any

from secateur.runtime.graph import Node, Value

__all__ = ["Unfit", "arguments", "pair", "value"]


class Unfit(Exception):
    """The engine has this operation, but not in this form; it runs in torch instead."""


def arguments(node: Node) -> dict[str, Any]:
    """All arguments, defaults included."""
    found = dict(node.kwargs)
    for k, said in enumerate(node.target._schema.arguments):
        if k < len(node.args):
            found[said.name] = node.args[k]
        elif said.name not in found:
            found[said.name] = said.default_value if said.has_default_value() else None
    return found


def pair(number: Any, dims: int = 2) -> tuple[int, int]:
    """A size for height and width; one-dimensional operations have height 1."""
    found = [number] if isinstance(number, int) else list(number)
    if len(found) == 1:
        found *= dims
    return (found[0], found[1]) if len(found) == 2 else (1, found[0])


def value(thing: Any) -> Value:
    """An argument that must be a tensor."""
    if not isinstance(thing, Value):
        raise Unfit("a tensor is expected")
    return thing
