"""What came of one layer under the knife, and of a whole run: masks, errors, tuned blocks, and what the reader should know of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

__all__ = ["Done", "Operation"]


@final
@dataclass(frozen=True, kw_only=True)
class Operation:
    """What became of one parameter.

    Args:
        weights, mask: ``[groups, rows, features]``.
        predicted: the rise of the damped quadratic by the steps that were taken, before the joint solve; per sample, summed over outputs.
        refitted: the same after the joint solve.
        measured: ``tr(D H D^T)`` against the weights that were imitated, without damping.
        energy: ``tr(W H W^T)``, for proportion.
        notes: what the reader should know.
    """

    weights: Tensor
    mask: Tensor
    predicted: float
    refitted: float
    measured: float
    energy: float
    notes: Mapping[str, Any] = field(default_factory=dict)


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
        idle = [row["name"] for row in self.rows if row.get("idle")]
        if idle:
            notes.append(
                f"Took in nothing that varies on these batches, so pruned by magnitude: {', '.join(idle)}; pass batches that reach them, or "
                f"leave them alone with ignore={idle}"
            )
        starved = [row["name"] for row in self.rows if row.get("starved")]
        if starved:
            notes.append(
                f"Ran in the dense network but not in the pruned one any more, so pruned by magnitude: {', '.join(starved)}; leave what routes to "
                "them alone with ignore=, or pass more batches"
            )
        routed = [row["name"] for row in self.rows if row.get("routed")]
        if routed:
            notes.append(
                f"Took in other samples than in the dense network, so targets are their own: {', '.join(routed)}"
            )
        if tuning and not self.blocks:
            notes.append("Not tuned: no chain of blocks was found that runs alone; name them with blocks=")
        return tuple(notes)
