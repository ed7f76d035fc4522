"""Rows, columns and kernels of one layer, as masks. (Real narrowing across layers is the ``channel`` granularity.)"""

from typing import Final

from secateur.granularities.pattern import Pattern

__all__ = ["parse"]

PATTERNS: Final = {
    "filter": Pattern(name="filter", weights="o i k", groups="", units="o", elements="i k"),
    "kernel": Pattern(name="kernel", weights="o i k", groups="", units="o i", elements="k"),
    "input_channel": Pattern(name="input_channel", weights="o i k", groups="", units="i", elements="o k"),
}


def parse(text: str) -> Pattern | None:
    """Read ``"filter"``, ``"kernel"`` or ``"input_channel"``."""
    return PATTERNS.get(text)
