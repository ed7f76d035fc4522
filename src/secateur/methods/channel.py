"""Channel pruning: couple, score whole units, plan, and take them out for real.

    couple --> groups --> plan(scores, Channels(groups), allocation) --> masks --> narrow --> a smaller network

Li et al. 2017 (filters by L1 norm) generalised to coupled groups: what must leave together is scored together.

With ``cost_weight`` what a unit costs counts against it (Molchanov et al. 2017, "FLOPs regularized pruning", lambda = 1e-3 there):

    Theta(unit) <- Theta(unit) - lambda * d MACs / d unit / 10^6

The slope is taken at full widths, over all layers that make, carry or read the unit (the paper counts the layer that makes it), on
the example as it is: so give one image, not a batch. Lambda is in the criterion's own units; 1e-3 is for ``taylor_map``, whose scores
have norm 1 in every group.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, final

from torch import nn

from secateur.costs.macs import Macs
from secateur.coupling import Coupling
from secateur.coupling.channels import Channels
from secateur.errors import BadScores, NeedsTask
from secateur.graphs import copied
from secateur.limits import check_units
from secateur.masks import Masks
from secateur.names import standing
from secateur.narrowing.meeting import Limit, pricing_of
from secateur.narrowing.recoupling import narrow_what_agrees
from secateur.narrowing.repairing import repair_
from secateur.narrowing.thinning import choose, coupled, members_of, receipt
from secateur.notes import describe
from secateur.protocols import Allocation, Criterion
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.targets import Ignore
from secateur.task import Task

__all__ = ["Channel"]


@final
@dataclass(frozen=True, kw_only=True)
class Channel:
    """Remove channels, heads and hidden units, and narrow the network.

    Args:
        criterion: how weights are scored; a unit's score is the mean over its weights, finished once.
        allocation: how many units of each group stay, or a `Limit` on what the result may cost.
        round_to: keep widths at multiples of this (8 runs fastest on most CPUs); 1 leaves them as they fall.
        ignore: layers whose channels stay.
        heads: "whole" or "inside"; see `secateur.couple`.
        norms: "hold" or "shrink"; see `secateur.couple`.
        repair: refit the layers that read what left, by least squares on the task's batches (no labels); see `secateur.narrowing.repairing`.
        fallback: "graph": return a graph module where the class itself cannot be narrowed as far; see `secateur.couple`.
        cost_weight: how much of a score a million multiply-accumulates are worth; 0 leaves them out of it.
    """

    criterion: Criterion
    allocation: Allocation | Limit
    round_to: int = 1
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    heads: str = "whole"
    norms: str = "hold"
    repair: bool = False
    fallback: str | None = None
    cost_weight: float = 0.0

    def __post_init__(self) -> None:
        check_units(round_to=self.round_to)
        if not 0 <= self.cost_weight < math.inf:
            raise BadScores(
                f"cost_weight={self.cost_weight} must be 0 or more: it is subtracted from the score for every million MACs, e.g. 1e-3"
            )

    def __call__(
        self,
        model: nn.Module,
        *,
        task: Task | None = None,
        example_inputs: Any = None,
        coupling: Coupling | None = None,
    ) -> Pruned:
        """Return a narrowed copy of ``model``, the masks it equals (on the original names), and the receipt.

        Raises:
            NeedsTask: no ``example_inputs``; coupling is found by running the model once.
            NothingToPrune: no channel may leave.
            NarrowingFailed, UnknownOperation, BadScores, BadSparsity: see the parts.
        """
        coupling = coupled(
            model,
            example_inputs,
            coupling=coupling,
            ignore=self.ignore,
            heads=self.heads,
            norms=self.norms,
            fallback=self.fallback,
        )
        said: tuple[str, ...] = ()

        def chosen(found: Coupling) -> tuple[nn.Module, Masks]:
            nonlocal said
            masks, said = self._choose(model, found, task, example_inputs)
            if not self.repair:
                return model, masks
            repaired, unheard = self._repaired(model, masks, task)
            said = (
                (*said, f"Not refitted, since no batch calls them as layers: {', '.join(unheard)}") if unheard else said
            )
            return repaired, masks

        narrowed = narrow_what_agrees(model, coupling, example_inputs, chosen)
        return receipt(
            narrowed, example_inputs=example_inputs, before=model, task=task, method=self._said(), notes=said
        )

    def _choose(
        self, model: nn.Module, coupling: Coupling, task: Task | None, example_inputs: Any
    ) -> tuple[Masks, tuple[str, ...]]:
        members = members_of(coupling, model)
        scores = replace(standing(self.criterion)(model, members, task), facts=members)
        if self.cost_weight:
            scores = _charged(scores, self.cost_weight, coupling, coupling.graph or model, example_inputs)
        return choose(model, coupling, scores, self.allocation, example_inputs=example_inputs, round_to=self.round_to)

    def _repaired(self, model: nn.Module, masks: Masks, task: Task | None) -> tuple[nn.Module, list[str]]:
        if task is None:
            raise NeedsTask("repair=True refits layers on what flows through them: pass task=sc.Task(batches)")
        masked = masks.apply_(copied(model))
        return masked, repair_(masked, model, masks, task).unheard

    def _said(self) -> str:
        charge = f" less {self.cost_weight:g} for each million MACs" if self.cost_weight else ""
        rounding = f", widths in multiples of {self.round_to}" if self.round_to > 1 else ""
        repaired = ", readers refitted by least squares" if self.repair else ""
        return f"channels narrowed, {describe(self.criterion)}{charge}, {describe(self.allocation)}{rounding}{repaired}"


def _charged(scores: Scores, weight: float, coupling: Coupling, model: nn.Module, example_inputs: Any) -> Scores:
    """Scores less what one unit of each group costs at full widths."""
    channels = Channels(groups=coupling.groups())
    prices = pricing_of(Macs(), coupling, model, example_inputs).savings({})
    units = channels.pool(scores)
    charged = {name: units[name].reshape(-1) - weight * prices[name] / 1e6 for name in units}
    return replace(channels.scores_of(charged, scores.values), facts=scores.facts)
