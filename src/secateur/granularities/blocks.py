"""Blocks of R output by C input channels at one kernel position: whole or gone.

``block:4x1`` (four outputs that share an input) is what sparse CPU kernels like best: one load feeds four rows.
"""

import re

from secateur.errors import BadPattern
from secateur.granularities.pattern import Pattern

__all__ = ["block", "parse"]


def block(rows: int, columns: int) -> Pattern:
    """Blocks of ``rows`` output channels by ``columns`` input channels.

    >>> block(4, 1).name
    'block:4x1'

    Raises:
        BadPattern: a side is not positive.
    """
    if rows < 1 or columns < 1:
        raise BadPattern(f"a block of {rows}x{columns} has no weights; use positive sides, e.g. block:4x1")
    return Pattern(
        name=f"block:{rows}x{columns}",
        weights="(o r) (i c) k",
        groups="",
        units="o i k",
        elements="r c",
        sizes=(("r", rows), ("c", columns)),
    )


def parse(text: str) -> Pattern | None:
    """Read ``"block:4x1"``, ``"block:2x2"``, ..."""
    found = re.fullmatch(r"block:(\d+)x(\d+)", text)
    return block(int(found[1]), int(found[2])) if found else None
