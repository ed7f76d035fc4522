"""Integers read off a tensor's shape: as sizes they follow by themselves; as numbers to calculate with they hold what they count.

``x.view(n, heads, c // heads)`` measures anew in the narrowed model and needs no help. ``corr / sqrt(x.shape[1])`` computes another
value there, so the channels that were counted may not leave.
"""

from collections.abc import Callable
from typing import Any

from secateur.coupling.traced import Traced

__all__ = ["Measured"]


class Measured(int):
    """An integer that says when it is calculated with, also after arithmetic of sizes."""

    expression: Any
    hold: tuple[Callable[[], None], ...]

    def __new__(cls, value: int, expression: Any, hold: tuple[Callable[[], None], ...]) -> "Measured":
        """Remember how ``value`` comes about, and what to do when it becomes more than a size."""
        made = super().__new__(cls, value)
        made.expression, made.hold = expression, hold
        return made

    def become_value(self) -> None:
        """It was turned into a number to calculate with, such as the scale of attention."""
        for hold in self.hold:
            hold()

    def __float__(self) -> float:
        self.become_value()
        return float(int(self))

    def __reduce__(self) -> Any:
        return (int, (int(self),))

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


def _operation(name: str, mirrored: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def compute(self: Measured, other: Any) -> Any:
        if isinstance(other, Traced):  # attributes decide: they have to follow
            return getattr(other, mirrored)(self)
        value = plain(self, other)
        if isinstance(value, float) or isinstance(other, float):
            self.become_value()
            if isinstance(other, Measured):
                other.become_value()
        if value is NotImplemented or not isinstance(value, int):
            return value
        expression = (name.strip("_"), self.expression, getattr(other, "expression", int(other)))
        return Measured(value, expression, self.hold + (other.hold if isinstance(other, Measured) else ()))

    return compute


def _negative(self: Measured) -> Measured:
    return Measured(-int(self), ("rsub", self.expression, 0), self.hold)


setattr(Measured, "__neg__", _negative)  # noqa: B010 - as below, not known to the type of int
for _name in ("add", "sub", "mul", "floordiv", "truediv", "pow"):
    setattr(Measured, f"__{_name}__", _operation(f"__{_name}__", f"__r{_name}__"))
    setattr(Measured, f"__r{_name}__", _operation(f"__r{_name}__", f"__{_name}__"))
