"""The rules by name of their operation, and what happens to operations that have none.

PyTorch has some two thousand operations and every release adds some. One of its own that has no rule holds what it touches, and
`explain` says so: that is safe, since what a rule does not say may leave stays. An operation of somebody else is an error that says
which rule to add, since its author can.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["RULES", "advice", "is_torch", "rule", "rule_for"]

RULES: dict[str, Callable[..., Any]] = {}


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say how an ATen operation couples channels; the last word on a name wins, so users can add and replace rules.

    A rule is called as ``rule(dye, out, *args, **kwargs)`` with the operation's result and arguments, and returns the layers
    of each output tensor: a tuple of layers for one output, a list of such tuples for several, or None for none.
    """

    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            RULES[name] = function
        return function

    return keep


def rule_for(name: str) -> Callable[..., Any] | None:
    """The rule for an operation; one that works in place has that of its plain form."""
    plain = name[:-1] if name.endswith("_") and not name.startswith("__") else name
    return RULES.get(name) or RULES.get(plain)


def is_torch(name: str) -> bool:
    """Whether an operation is PyTorch's own: those carry no namespace here."""
    return "::" not in name or name.startswith(("prims::", "torchvision::"))


def advice(name: str, module: str) -> str:
    """What is missing for an operation, and the line to add."""
    where = f" (in '{module}')" if module else ""
    return (
        f"no coupling rule for the operation `{name}`{where}, so it is not known which channels it mixes. Add one outside "
        f"the package: @secateur.coupling.rule({name!r}), a function of (dye, out, *args) that returns the layers of its "
        "output; one that only passes the channels of its first argument on returns dye.of(args[0])"
    )
