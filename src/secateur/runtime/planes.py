"""Pitches: how far rows of planes lie apart, agreed between all values that one convolution or sum ties together.

A stride-1 convolution reads pixel p + shift for output pixel p, so input and output must count pixels alike: they have one pitch. The
gap after each row is the zero padding of its right end and of the next row's left end.
"""

from dataclasses import dataclass, field

from secateur.runtime.graph import Node, Value, values_in

__all__ = ["Planes", "plane_shape"]

_POINTWISE = frozenset(
    [
        "relu",
        "relu6",
        "hardtanh",
        "clamp",
        "silu",
        "gelu",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "tanh",
        "leaky_relu",
        "elu",
        "mish",
        "softplus",
        "prelu",
        "add",
        "sub",
        "mul",
        "div",
        "batch_norm",
        "group_norm",
        "instance_norm",
        "cat",
        "neg",
        "exp",
        "abs",
        "clamp_min",
        "clamp_max",
    ]
)


@dataclass(eq=False)
class _Group:
    members: list[Value] = field(default_factory=list)


def plane_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """[N, C, L] as planes of one row."""
    n, c, *rest = shape
    return (n, c, 1, rest[0]) if len(rest) == 1 else (n, c, rest[0], rest[1])


class Planes:
    """Groups of values that share a pitch."""

    def __init__(self) -> None:
        self._group: dict[Value, _Group] = {}

    def group(self, value: Value) -> _Group:
        """The group of a value, alone at first."""
        if value not in self._group:
            self._group[value] = _Group([value])
        return self._group[value]

    def tie(self, *values: Value) -> None:
        """Let values share a pitch."""
        groups = {id(g): g for g in map(self.group, values)}
        first, *others = groups.values()
        for other in others:
            first.members += other.members
            for member in other.members:
                self._group[member] = first

    def knows(self, value: Value) -> bool:
        """Whether a convolution or something tied to one reads or writes it."""
        return value in self._group

    def pitch(self, value: Value) -> tuple[int, int]:
        """Floats from row to row, and rows from image to image."""
        wide, high = 1, 1
        for member in self.group(value).members:
            _, _, height, width = plane_shape(member.shape)
            top, bottom, left, right = member.need
            wide, high = max(wide, width + max(left, right)), max(high, height + max(top, bottom))
        return wide, high

    def follow(self, node: Node) -> None:
        """Tie what an elementwise operation reads and makes, where one of them is known."""
        if node.name not in _POINTWISE or not node.outs or len(node.out.shape) not in (3, 4):
            return
        alike = [
            v
            for v in values_in(node.args)
            if v.tensor is None
            and len(v.shape) == len(node.out.shape)
            and v.shape[2:] == node.out.shape[2:]
            and v.shape[0] == node.out.shape[0]
        ]
        if any(self.knows(v) for v in [*alike, node.out]):
            self.tie(node.out, *alike)
