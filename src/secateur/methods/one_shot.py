"""One-shot: score, plan, mask. The model that comes in is not touched."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, final

from torch import nn

from secateur.controls import controls_of
from secateur.granularities.unstructured import Unstructured
from secateur.names import standing
from secateur.notes import describe, notes_on
from secateur.planning import plan
from secateur.profiling.profile import compare
from secateur.protocols import Allocation, Criterion, Granularity
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.targets import Ignore, find_targets
from secateur.task import Task

__all__ = ["OneShot"]


@final
@dataclass(frozen=True, kw_only=True)
class OneShot:
    """Score every weight once, keep the best.

    Args:
        criterion: how weights are scored.
        allocation: how many units stay where; ``None`` for a granularity with a quota (N:M).
        granularity: what leaves together.
        ignore: what to leave alone; see `find_targets`.
        include_bias: prune vectors of the same layers too.
    """

    criterion: Criterion
    allocation: Allocation | None = None
    granularity: Granularity = field(default_factory=Unstructured)
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    include_bias: bool = False

    def __call__(self, model: nn.Module, *, task: Task | None = None, example_inputs: Any = None) -> Pruned:
        """Return a pruned copy of ``model`` with masks and receipt.

        Raises:
            NothingToPrune, UnknownName, BadPattern, BadScores, BadSparsity, NeedsTask: see the parts.
        """
        scores = self.scores(model, task)
        masks = plan(scores, self.granularity, self.allocation)
        after = masks.apply_(copy.deepcopy(model))
        said = f", {scores.said}" if scores.said else ""
        report = compare(
            model,
            after,
            example_inputs,
            task=task,
            method=f"one-shot, {describe(self.criterion)}{said}, {describe(self.granularity)}, {describe(self.allocation)}",
            notes=notes_on(model, masks),
        )
        if getattr(self.criterion, "controlled", False):
            found = controls_of(model, scores.facts, masks, task, granularity=self.granularity)
            report = replace(report, controls=found)
        return Pruned(after, masks, report)

    def scores(self, model: nn.Module, task: Task | None) -> Scores:
        """What the criterion says of every weight that may leave.

        Raises:
            NothingToPrune, UnknownName, NeedsTask: see the parts.
        """
        criterion = standing(self.criterion)
        targets = find_targets(model, ignore=self.ignore, include_bias=self.include_bias)
        return replace(criterion(model, targets, task), facts=targets)
