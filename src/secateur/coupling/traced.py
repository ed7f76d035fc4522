"""Integers that remember which attributes they were computed from, and the algebra to compute them again."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["Count", "Origin", "Traced", "counted", "origins", "spell", "value_of"]

Origin = tuple[str, str]  # module path, attribute


class Count:
    """A size that was read off a tensor: in an expression it is what is left of an axis.

    Args:
        lines: the colours along the axis, ``[size, colours]``.
    """

    def __init__(self, lines: Tensor) -> None:
        self.lines = lines

    def left(self, gone: Tensor) -> int:
        """How many indices stay; one is gone when all of its colours are."""
        return int((~gone[self.lines]).any(1).sum())


class Traced(int):
    """An integer that remembers how it was computed from attributes."""

    expression: Any
    valued: set[Origin]

    def __new__(cls, value: int, expression: Any, valued: set[Origin] | None = None) -> "Traced":
        """Remember ``expression`` beside ``value``; attributes that decide more than sizes are gathered in ``valued``."""
        made = super().__new__(cls, value)
        made.expression, made.valued = expression, set() if valued is None else valued
        return made

    def become_value(self) -> None:
        """It was turned into a number to calculate with, such as the scale of attention."""
        self.valued |= origins(self.expression)

    def __float__(self) -> float:
        self.become_value()
        return float(int(self))

    def __reduce__(self) -> Any:
        return (int, (int(self),))

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


def _operation(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)
    short = name.strip("_")

    def compute(self: Traced, other: Any) -> Any:
        value = plain(self, other)
        if value is NotImplemented or not isinstance(value, int) or short not in _SIZES:
            self.become_value()
            return value
        left, right = self.expression, getattr(other, "expression", int(other))
        return Traced(value, (short, left, right), self.valued)

    return compute


def _negative(self: Traced) -> Traced:
    return Traced(-int(self), ("rsub", self.expression, 0), self.valued)


setattr(Traced, "__neg__", _negative)  # noqa: B010 - as below, not known to the type of int
_SIZES = ("add", "sub", "mul", "floordiv", "radd", "rsub", "rmul", "rfloordiv")
for _name in (*_SIZES, "truediv", "rtruediv", "pow", "rpow"):
    setattr(Traced, f"__{_name}__", _operation(f"__{_name}__"))

_ARITHMETIC = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv}


def _evaluate(expression: Any, sizes: dict[Origin, int], before: Mapping[Origin, int]) -> int:
    """The value of an expression with the new sizes."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression[0], str) and len(expression) == 2:
        return sizes.get(expression, before[expression])
    name, left, right = expression
    a, b = _evaluate(left, sizes, before), _evaluate(right, sizes, before)
    if name.startswith("r"):
        return int(_ARITHMETIC[name[1:]](b, a))
    return int(_ARITHMETIC[name](a, b))


def origins(expression: Any) -> set[Origin]:
    """The attributes an expression is made from."""
    if isinstance(expression, int | Count):
        return set()
    if len(expression) == 2:
        return {expression}
    return origins(expression[1]) | origins(expression[2])


def counted(expression: Any, gone: Tensor) -> Any:
    """The expression with every `Count` replaced by what is left when ``gone`` leaves."""
    if isinstance(expression, Count):
        return expression.left(gone)
    if isinstance(expression, int) or len(expression) == 2:
        return expression
    name, left, right = expression
    return (name, counted(left, gone), counted(right, gone))


def value_of(expression: Any, sizes: dict[Origin, int], before: Mapping[Origin, int]) -> int | None:
    """The value of an expression with the new sizes, or None where it divides by zero."""
    try:
        return _evaluate(expression, sizes, before)
    except ZeroDivisionError:
        return None


def spell(expression: Any) -> str:
    """An expression for people to read."""
    if isinstance(expression, int):
        return str(expression)
    if isinstance(expression, Count):
        return f"a size of {len(expression.lines)}"
    if len(expression) == 2:
        return f"self.{expression[1]}"
    return f"({spell(expression[1])} {expression[0]} {spell(expression[2])})"
