"""Budgets in words: ``"macs:50%"``, ``"params:1M"``, ``"bytes:2MB"``, ``"latency:8ms"``."""

import math
import re
from dataclasses import dataclass
from typing import final

from secateur.errors import UnknownName

__all__ = ["Budget", "spelled"]

_PLAIN = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_TIME = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_ENERGY = {"pj": 1e-6, "nj": 1e-3, "uj": 1.0, "µj": 1.0, "mj": 1e3, "j": 1e6}
_SUFFIXES = {"": _PLAIN, "bytes": _BYTES, "ms": _TIME, "µJ": _ENERGY}
_SPELLED = {
    "k": "k",
    "m": "M",
    "g": "G",
    "b": "B",
    "t": "T",
    "kb": "kB",
    "mb": "MB",
    "gb": "GB",
    "kib": "KiB",
    "mib": "MiB",
    "gib": "GiB",
}


@final
@dataclass(frozen=True)
class Budget:
    """What the result may cost.

    Args:
        cost: the name of a cost: "macs", "params", "bytes", "latency", "peak_memory", ...
        amount: a number in the cost's unit, or a fraction of what the dense model costs.
        relative: whether it is a fraction.
    """

    cost: str
    amount: float
    relative: bool

    @classmethod
    def of(cls, text: str, unit_of: "dict[str, str] | None" = None) -> "Budget":
        """Read a budget.

        Args:
            text: ``cost:amount``; the amount ends in % or in a unit of the cost.
            unit_of: the unit of every cost that there is.

        Raises:
            UnknownName: it is not of that form, or asks for nothing or for more than there is.

        >>> Budget.of("macs:50%"), Budget.of("params:1.5M", {"params": ""})
        (Budget(cost='macs', amount=0.5, relative=True), Budget(cost='params', amount=1500000.0, relative=False))
        """
        found = re.fullmatch(r"\s*([\w.:-]*?\w)\s*:\s*(\d+\.?\d*|\.\d+)((?:[eE][+-]?\d+)?)\s*([%\wµ]*)\s*", text)
        if found is None or math.isinf(float(found[2] + found[3])):
            raise UnknownName(
                f"budget={text!r} is not understood; write cost:amount, e.g. 'macs:50%', 'params:1M', 'latency:8ms'"
            )
        cost, number, suffix = found[1], float(found[2] + found[3]), found[4]
        if suffix == "%":
            if not 0 < number <= 100:
                raise UnknownName(f"budget={text!r} is not between 0 % and 100 % of what the dense model costs")
            return cls(cost, number / 100, relative=True)
        suffixes = _SUFFIXES.get((unit_of or {}).get(cost, ""), _PLAIN)
        if suffix.lower() not in suffixes:
            known = ", ".join(f"{number:g}{_SPELLED.get(known, known)}" for known in suffixes if known)
            what = f"{suffix} is no unit of {cost!r}" if suffix else f"{cost!r} needs a unit"
            raise UnknownName(f"budget={text!r}: {what}; write {known} or a percentage")
        if number <= 0:
            raise UnknownName(f"budget={text!r} asks for nothing at all")
        return cls(cost, number * suffixes[suffix.lower()], relative=False)

    def limit(self, dense: float) -> float:
        """The budget in the cost's unit, if the dense model costs ``dense``."""
        return self.amount * dense if self.relative else self.amount


def spelled(value: float, unit: str) -> str:
    """A number of a cost for people.

    >>> spelled(2_045_000_000, ""), spelled(2_000_000, "bytes"), spelled(8.25, "ms")
    ('2.045 G', '2 MB', '8.25 ms')
    """
    if unit == "ms" and value >= 1e4:
        return f"{value / 1e3:.4g} s"
    if unit not in ("", "bytes"):
        return f"{value:.4g} {unit}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g} {letter}{'B' if unit else ''}"
    return f"{value:.4g} {unit}".strip()
