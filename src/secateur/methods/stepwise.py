"""Prune a little, train, prune again: a network reaches its size in steps, and is really smaller after each (Molchanov et al. 2017).

    for k = 1 .. n:   couple, score, narrow to share_k;   train;   stop if the score is too low

    share_k = share^(k/n)  (every step takes the same part of what is left)   or   1 - (1 - share) k/n  (the same part of the whole)

Scores are taken anew in every step, from a network that has recovered from the one before, and training gets cheaper on the way. The
steps add up to one `Structure` and one set of masks on the names and shapes of the network that went in.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

from torch import nn

from secateur.activations import run_batch
from secateur.budgets import Budget
from secateur.counting import check_number, is_count
from secateur.coupling import Coupling
from secateur.coupling.census import groups_of, held_of
from secateur.coupling.channels import Channels
from secateur.errors import BadSchedule, WrongModel
from secateur.examples import leaving_no_trace
from secateur.graphs import copied
from secateur.limits import check_units, share_of
from secateur.masks import Masks
from secateur.names import allocation_of, criterion_of, standing
from secateur.narrowing.meeting import Limit
from secateur.narrowing.narrow import narrow, structure_of
from secateur.narrowing.thinning import choose, coupled, masks_of, members_of
from secateur.notes import describe
from secateur.profiling.profile import compare
from secateur.protocols import Allocation, Criterion
from secateur.report import Pruned
from secateur.structure import Structure
from secateur.targets import Ignore, ignored_parameters
from secateur.task import Task
from secateur.training.recalibration import recalibrate_

__all__ = ["Stepwise"]

Train = Callable[[nn.Module, int], object]


@final
@dataclass(frozen=True, kw_only=True)
class Stepwise:
    """Narrow in several steps, with training after each.

    Args:
        sparsity: the fraction of the units removed at the end, or
        budget: what the result may cost, e.g. ``"macs:30%"``; see `secateur.prune`.
        steps: how often to prune.
        criterion: a name or an object; scored anew in every step.
        geometric: whether every step takes the same part of what is left; otherwise the same part of the whole.
        scope: "global" (with a budget: by score per cost), "layer", ...
        min_kept: units that stay in every group at least.
        round_to: keep widths at multiples of this.
        ignore: layers whose channels stay.
        heads, norms: see `secateur.couple`.
        recalibrate: refresh batch-norm statistics on the task's batches after each narrowing, before training.
        min_score: stop as soon as ``task.evaluate`` says less than this after training; the model of the step before comes back.
    """

    sparsity: float | None = None
    budget: str | None = None
    steps: int = 5
    criterion: str | Criterion = "magnitude"
    geometric: bool = True
    scope: str = "global"
    min_kept: int = 1
    round_to: int = 1
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    heads: str = "whole"
    norms: str = "hold"
    recalibrate: bool = False
    min_score: float | None = None

    def __post_init__(self) -> None:
        check_units(round_to=self.round_to, min_kept=self.min_kept)
        if not is_count(self.steps) or self.steps < 1:
            raise BadSchedule(f"Stepwise(steps={self.steps!r}) needs at least one step, in whole numbers")
        if self.min_score is not None:
            check_number("min_score", self.min_score, -math.inf)

    def __call__(
        self,
        model: nn.Module,
        train: Train,
        *,
        task: Task | None = None,
        example_inputs: Any = None,
        on_step: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> Pruned:
        """Return a narrowed, trained copy of ``model``, which is expected to be trained already.

        Args:
            model: the trained model; not touched.
            train: ``train(model, step)`` trains the narrowed model in place, with a *fresh* optimizer; steps count from 1.
            task: for criteria that need data, for ``min_score``, and for the receipt.
            example_inputs: the model is run on them to see what is coupled.
            on_step: called after each step with what the receipt's ``settings["history"]`` holds about it.

        Raises:
            NeedsTask: no ``example_inputs``, or the task lacks what the criterion, ``recalibrate`` or ``min_score`` need.
            NothingToPrune, OverBudget, NarrowingFailed, BadSparsity, UnknownName: see the parts.
        """
        task = task or Task()
        if self.min_score is not None:
            task.needs_evaluate("Stepwise(min_score=...)")
        walk = _Walk(self, model, task, example_inputs)
        for number in range(1, self.steps + 1):
            done = walk.take(number, train)
            if on_step:
                on_step(done)
            if not done["kept"]:
                break
        return walk.result()


class _Walk:
    """A `Stepwise` on its way."""

    def __init__(self, method: Stepwise, model: nn.Module, task: Task, example_inputs: Any) -> None:
        self.method, self.model, self.task, self.example_inputs = method, model, task, example_inputs
        self.ignore = sorted(ignored_parameters(model, method.ignore))  # by name: the copies have other modules
        self.coupling = self._coupled(model)
        self.criterion = standing(criterion_of(method.criterion))
        self._plan = partial(choose, example_inputs=example_inputs, round_to=method.round_to)
        self.share = share_of(method.sparsity, method.budget, method.scope, method.min_kept)
        self.units = self.left = sum(group.units for group in self.coupling.groups())
        self.dense = self._cost(model)
        self.student, self.structure = model, Structure()
        self.history: list[dict[str, Any]] = []

    def take(self, number: int, train: Train) -> dict[str, Any]:
        """Narrow, train and judge; the student is replaced if it is good enough."""
        coupling = self._coupled(self.student) if number > 1 else self.coupling
        masks, asked = self._choose(number, coupling)
        removed = masks.kept < masks.total
        structure = self.structure.then(coupling.structure_for(masks))
        left = self._units(structure)
        student = (
            narrow(self.student, masks, self.example_inputs, coupling=coupling) if removed else copied(self.student)
        )
        if self.method.recalibrate:
            batches = self.task.each_batch("Stepwise(recalibrate=True)")
            recalibrate_(student, batches, lambda model, batch: run_batch(model, batch, self.task))
        before = self._score(student)
        returned = train(student, number)
        if isinstance(returned, nn.Module) and returned is not student:
            raise WrongModel("train(model, step) returned another model; it has to train the one it is given, in place")
        after, floor = self._score(student), self.method.min_score
        kept = floor is None or after is None or after >= floor
        done = {"step": number, "asked": asked, "cost": self._cost(student), "units": left, "params": _size(student)}
        self.history.append(done | {"score_before": before, "score_after": after, "kept": kept})
        if kept:
            self.student, self.left, self.structure = student, left, structure
        return self.history[-1]

    def result(self) -> Pruned:
        """The last good model, with masks on the names of the first."""
        student = copied(self.model) if self.student is self.model else self.student
        own = self.structure if self.structure.kept else None
        said: Any = {"method": self._said(), "settings": {"history": self.history}, "notes": self._notes()}
        report = compare(self.model, student, self.example_inputs, task=self.task, **said)
        groups, held = groups_of(self.coupling, self.model, own), held_of(self.coupling, self.model)
        masks = masks_of(self.structure, self.coupling, self.model)
        return Pruned(student, masks, replace(report, groups=groups, held=held), structure_of(student))

    def _coupled(self, model: nn.Module) -> Coupling:
        method = self.method
        return coupled(model, self.example_inputs, ignore=self.ignore, heads=method.heads, norms=method.norms)

    def _choose(self, number: int, coupling: Coupling) -> tuple[Masks, float]:
        """The masks of a step, and what it asked for: a cost, or a sparsity of the whole."""
        members = members_of(coupling, self.student)
        scores = replace(self.criterion(self.student, members, self.task), facts=members)
        if number == 1:  # a rehearsal: what cannot be reached in the end is refused now, not several trainings later
            self._plan(self.model, coupling, scores, self.share)
        share, asked = self._share(number, sum(group.units for group in coupling.groups()))
        masks, _ = self._plan(self.student, coupling, scores, share)
        return masks, asked

    def _units(self, structure: Structure) -> int:
        """How many of the units of the network that went in are left."""
        masks = masks_of(structure, self.coupling, self.model)
        return sum(int(alive.sum()) for alive in Channels(groups=self.coupling.groups()).alive(masks).values())

    def _share(self, number: int, seen: int) -> tuple[Allocation | Limit, float]:
        method, progress = self.method, number / self.method.steps
        if isinstance(self.share, Limit):
            assert self.dense is not None
            amount = self.dense * self._part(self.share.budget.limit(self.dense) / self.dense, progress)
            spared = self.share.spared ** (1 / method.steps)  # in all steps together as much as one alone would spare
            budget = Budget(self.share.budget.cost, amount, relative=False)
            return replace(self.share, spared=spared, budget=budget), amount
        assert method.sparsity is not None
        part = self._part(1 - method.sparsity, progress)
        target = round(self.units * part) - (self.left - seen)  # a group with one unit left is no group any more
        return allocation_of(
            method.scope, min(max(0.0, 1 - target / seen), 1 - 1e-9), min_kept=method.min_kept
        ), 1 - part

    def _part(self, share: float, progress: float) -> float:
        return share**progress if self.method.geometric else share * progress + (1 - progress)

    def _cost(self, model: nn.Module) -> float | None:
        return self.share.cost.measure([model], self.example_inputs)[0] if isinstance(self.share, Limit) else None

    def _score(self, model: nn.Module) -> float | None:
        if self.task.evaluate is None:
            return None
        with leaving_no_trace(model):
            return float(self.task.evaluate(model))

    def _said(self) -> str:
        method, pace = self.method, "geometric" if self.method.geometric else "linear"
        share = method.budget or f"sparsity {method.sparsity:g}"
        return (
            f"channels narrowed in {len(self.history)} of {method.steps} {pace} steps with training after each, "
            f"{describe(self.criterion)}, scope {method.scope}, {share}"
        )

    def _notes(self) -> tuple[str, ...]:
        last = self.history[-1]
        blurred = ("Norms run over fewer channels than in the masked model, so the outputs are not the same",)
        said = blurred if self.structure.kept and self.coupling.inexact(self.structure) else ()
        if last["kept"]:
            return said
        back = "the dense model" if last["step"] == 1 else f"the model of step {last['step'] - 1}"
        return (
            *said,
            f"Stopped: after training in step {last['step']} of {self.method.steps} the score was {last['score_after']:.6g}, below "
            f"min_score={self.method.min_score:g}, so {back} came back and the goal was not reached",
        )


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
