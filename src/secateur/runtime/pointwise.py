"""Functions of one number and of two, by the numbers that the engine knows them by."""

import math
from dataclasses import dataclass
from typing import Any

from secateur.runtime.graph import Node

__all__ = ["ACTS", "PAIRS", "Activation", "activation_of"]

ACTS = {
    name: k
    for k, name in enumerate(
        [
            "none",
            "clip",
            "gelu",
            "gelu_tanh",
            "silu",
            "sigmoid",
            "tanh",
            "hardswish",
            "hardsigmoid",
            "leaky",
            "exp",
            "neg",
            "sqrt",
            "rsqrt",
            "abs",
            "erf",
            "log",
            "elu",
            "softplus",
            "affine",
            "power",
            "sin",
            "cos",
            "reciprocal",
            "mish",
        ]
    )
}
PAIRS = {
    name: k
    for k, name in enumerate(
        ["add", "sub", "mul", "div", "max", "min", "prelu", "lt", "le", "gt", "ge", "eq", "ne", "pow"]
    )
}
_PLAIN = {
    "silu",
    "sigmoid",
    "tanh",
    "hardswish",
    "hardsigmoid",
    "exp",
    "neg",
    "sqrt",
    "rsqrt",
    "abs",
    "erf",
    "log",
    "sin",
    "cos",
    "reciprocal",
    "mish",
}
_INF = math.inf


@dataclass(frozen=True)
class Activation:
    """A function of one number: limits are applied first."""

    name: str = "none"
    low: float = -_INF
    high: float = _INF
    a: float = 0.0
    b: float = 0.0

    @property
    def number(self) -> int:
        """The engine's."""
        return ACTS[self.name]


def activation_of(node: Node) -> Activation | None:
    """The function that a node applies to its only tensor, or None."""
    name, rest = node.name, node.args[1:]
    if name in _PLAIN:
        return Activation(name)
    made = _LIMITS.get(name) or _OTHERS.get(name)
    return made(list(rest), node.kwargs) if made else None


def _at(args: list[Any], kwargs: dict[str, Any], place: int, name: str, default: Any) -> Any:
    found = args[place] if len(args) > place else kwargs.get(name, default)
    return default if found is None else found


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


_LIMITS: dict[str, Any] = {
    "relu": lambda _a, _k: Activation(low=0.0),
    "relu6": lambda _a, _k: Activation(low=0.0, high=6.0),
    "hardtanh": lambda a, k: Activation(low=_at(a, k, 0, "min_val", -1.0), high=_at(a, k, 1, "max_val", 1.0)),
    "clamp_min": lambda a, _k: Activation(low=a[0]) if _number(a[0]) else None,
    "clamp_max": lambda a, _k: Activation(high=a[0]) if _number(a[0]) else None,
}


def _clamp(a: list[Any], k: dict[str, Any]) -> Activation | None:
    low, high = _at(a, k, 0, "min", -_INF), _at(a, k, 1, "max", _INF)
    return Activation(low=low, high=high) if _number(low) and _number(high) else None


def _gelu(a: list[Any], k: dict[str, Any]) -> Activation:
    return Activation("gelu_tanh" if _at(a, k, 0, "approximate", "none") == "tanh" else "gelu")


def _elu(a: list[Any], k: dict[str, Any]) -> Activation | None:
    alpha, scale, inner = _at(a, k, 0, "alpha", 1.0), _at(a, k, 1, "scale", 1.0), _at(a, k, 2, "input_scale", 1.0)
    return Activation("elu", a=alpha) if scale == inner == 1 else None


def _softplus(a: list[Any], k: dict[str, Any]) -> Activation | None:
    return Activation("softplus") if _at(a, k, 0, "beta", 1) == 1 and _at(a, k, 1, "threshold", 20) == 20 else None


def _power(a: list[Any], _k: dict[str, Any]) -> Activation | None:
    return Activation("power", a=float(a[0])) if _number(a[0]) else None


_OTHERS: dict[str, Any] = {
    "clamp": _clamp,
    "gelu": _gelu,
    "elu": _elu,
    "softplus": _softplus,
    "leaky_relu": lambda a, k: Activation("leaky", a=_at(a, k, 0, "negative_slope", 0.01)),
    "pow": _power,
}
