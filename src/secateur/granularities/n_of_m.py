"""N:M: of every M consecutive input channels (at the same output and kernel position), exactly N weights stay.

The published counts say how many are *kept*: 2:4 halves the weights, 1:4 removes three quarters.
"""

import re

from secateur.errors import BadPattern
from secateur.granularities.pattern import Pattern

__all__ = ["n_of_m", "parse"]


def n_of_m(n: int, m: int) -> Pattern:
    """Keep ``n`` weights of every ``m`` along the input channels.

    >>> n_of_m(2, 4).quota
    2

    Raises:
        BadPattern: not ``0 < n < m``.
    """
    if not 0 < n < m:
        raise BadPattern(f"the pattern {n}:{m} keeps {n} of every {m} weights; it needs 0 < n < m (2:4, 1:4, 4:8, ...)")
    return Pattern(
        name=f"{n}:{m}", weights="o (g m) k", groups="o k g", units="m", elements="", sizes=(("m", m),), quota=n
    )


def parse(text: str) -> Pattern | None:
    """Read ``"2:4"``, ``"1:8"``, ..."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    return n_of_m(int(found[1]), int(found[2])) if found else None
