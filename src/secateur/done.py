"""What came of a layer-wise run: masks, a row of errors for each parameter, tuned blocks, and what the reader should know of them."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Done"]


@dataclass(eq=False)
class Done:
    """Masks by parameter, a row of errors for each, and the bound on the network's error."""

    masks: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    bound: dict[str, float] = field(default_factory=dict)

    def said(self, *, tuning: bool) -> tuple[str, ...]:
        """What the reader should know.

        Args:
            tuning: whether blocks were to be tuned.
        """
        notes = []
        idle = [row["name"] for row in self.rows if row.get("dead") and row["dense_norm"] > 0 and not row["norm"]]
        if idle:
            notes.append(
                f"Took in nothing but zeros on these batches, so all weights became zero: {', '.join(idle)}; pass batches that reach them, "
                f"or leave them alone with ignore={idle}"
            )
        if tuning and not self.blocks:
            notes.append("Not tuned: no chain of blocks was found that runs alone; name them with blocks=")
        return tuple(notes)
