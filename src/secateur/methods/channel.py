"""Channel pruning: couple, score whole units, plan, and take them out for real.

    couple --> groups --> plan(scores, Channels(groups), allocation) --> masks --> narrow --> a smaller network

Li et al. 2017 (filters by L1 norm) generalised to coupled groups: what must leave together is scored together.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, final

from torch import nn

from secateur.agreement import difference, outputs_of
from secateur.allocations.rounded import Rounded
from secateur.coupling import Coupling, couple
from secateur.coupling.census import groups_of, held_of
from secateur.coupling.channels import Channels
from secateur.errors import BadSparsity, NeedsTask, NothingToPrune
from secateur.facts import LayerFacts
from secateur.graphs import copied
from secateur.masks import Masks
from secateur.meeting import Limit, meet
from secateur.narrowing import narrow, structure_of
from secateur.notes import describe
from secateur.planning import plan
from secateur.profiling import compare
from secateur.protocols import Allocation, Criterion
from secateur.repairing import repair_
from secateur.report import Pruned
from secateur.targets import Ignore, refuse_unusable
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
        repair: refit the layers that read what left, by least squares on the task's batches (no labels); see `secateur.repairing`.
        fallback: "graph": return a graph module where the class itself cannot be narrowed as far; see `secateur.couple`.
    """

    criterion: Criterion
    allocation: Allocation | Limit
    round_to: int = 1
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    heads: str = "whole"
    norms: str = "hold"
    repair: bool = False
    fallback: str | None = None

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise BadSparsity(f"round_to={self.round_to} must be a positive number of channels, e.g. 8")

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
        if example_inputs is None:
            raise NeedsTask(
                "narrowing runs the model once to see what is coupled: pass example_inputs=, e.g. torch.randn(1, 3, 224, 224)"
            )
        refuse_unusable(model, ignore=self.ignore)  # refuses what cannot be pruned, before time is spent
        coupling = coupling or couple(
            model, example_inputs, ignore=self.ignore, heads=self.heads, norms=self.norms, fallback=self.fallback
        )
        if not coupling.groups():
            raise NothingToPrune(
                f"no channel of {type(model).__name__} may leave; couple(...).explain('layer') says why, layer by layer"
                f"{_advice(coupling, self.norms)}"
            )
        masks, said = self._plan(model, coupling, task, example_inputs)
        source = self._repaired(model, masks, task) if self.repair else model
        thin = (
            narrow(source, masks, example_inputs, coupling=coupling)
            if masks.kept < masks.total
            else copy.deepcopy(source)
        )
        structure = structure_of(thin)
        notes = said + _notes(coupling, masks) + _difference(coupling, source, masks, thin, example_inputs)
        report = compare(model, thin, example_inputs, task=task, method=self._said(), notes=notes)
        report = replace(report, groups=groups_of(coupling, model, structure), held=held_of(coupling, model))
        return Pruned(thin, masks, report, structure)

    def _plan(
        self, model: nn.Module, coupling: Coupling, task: Task | None, example_inputs: Any
    ) -> tuple[Masks, tuple[str, ...]]:
        """The masks, and what came of a budget."""
        own = dict(model.named_parameters())
        targets = {n: LayerFacts() for g in coupling.groups() for n, _ in g.places if n in own}
        scores = replace(self.criterion(model, targets, task), facts=targets)
        if isinstance(self.allocation, Limit):
            met = meet(
                model,
                coupling,
                scores,
                within=self.allocation,
                example_inputs=example_inputs,
                round_to=self.round_to,
            )
            return met.masks, (met.says(self.allocation.budget.cost, self.allocation.cost.unit),)
        granularity = Channels(groups=coupling.groups())
        entries = tuple((granularity.key(g), g.entries) for g in coupling.groups())
        allocation = self.allocation
        if self.round_to > 1:
            allocation = Rounded(allocation=allocation, multiple=self.round_to, entries=entries)
        return plan(scores, granularity, allocation), ()

    def _repaired(self, model: nn.Module, masks: Masks, task: Task | None) -> nn.Module:
        if task is None:
            raise NeedsTask("repair=True refits layers on what flows through them: pass task=sc.Task(batches)")
        masked = masks.apply_(copied(model))
        repair_(masked, model, masks, task)
        return masked

    def _said(self) -> str:
        rounding = f", widths in multiples of {self.round_to}" if self.round_to > 1 else ""
        repaired = ", readers refitted by least squares" if self.repair else ""
        return f"channels narrowed, {describe(self.criterion)}, {describe(self.allocation)}{rounding}{repaired}"


def _notes(coupling: Coupling, masks: Masks) -> tuple[str, ...]:
    held = [n for n, dims in coupling.dye.owners.items() if n.endswith("weight") and len(dims) > 1 and n not in masks]
    notes = [
        f"{len(coupling.groups())} groups of coupled channels; couple(...).explain('layer') says why the rest stays"
    ]
    if coupling.said:
        notes.append(coupling.said)
    if masks.kept == masks.total:
        notes.append("Nothing was removed: the sparsity rounds to zero units in every group")
    if held:
        notes.append(f"No channel of {len(held)} weight(s) may leave, first {', '.join(held[:4])}")
    return tuple(notes)


def _advice(coupling: Coupling, norms: str) -> str:
    reasons = {why.reason for _, why in coupling.dye.palette.frozen}
    if norms == "hold" and reasons & {"is normalised together", "is reduced over all channels"}:
        return ". Norms over channels hold some of them: norms='shrink' lets those leave, and the outputs then differ from the masked"
    return ""


def _difference(
    coupling: Coupling, model: nn.Module, masks: Masks, thin: nn.Module, example_inputs: Any
) -> tuple[str, ...]:
    """By how much the narrowed model differs from the masked one, where norms shrank."""
    structure = structure_of(thin)
    why = coupling.inexact(structure) if structure else None
    if why is None:
        return ()
    masked = outputs_of(masks.apply_(copied(model)), example_inputs)
    apart = max(difference(a, b) for a, b in zip(masked, outputs_of(thin, example_inputs), strict=True))
    return (
        f"Norms run over fewer channels than in the masked model, so the outputs are not the same: they differ by {apart:.1e} of "
        f"the largest on the example; first where a channel {why}",
    )
