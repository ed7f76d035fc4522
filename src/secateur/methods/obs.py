"""Optimal brain surgeon (Hassibi & Stork 1993; Hassibi, Stork & Wolff 1993): the whole network's inverse Hessian, for up to about 10^4 weights.

    L_q = w_q^2 / (2 [H^-1]_qq),    all other weights move by  - w_q / [H^-1]_qq H^-1 e_q;    several at once are one linear system

Weights (biases too) leave, the least missed first, as far as an allocation lets them (`secateur.quotas`); H is made anew after every stage.
It ends at a sparsity, where the quality would fall below a floor, or where the loss is predicted to rise by too much.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from secateur.allocations.global_ import Global
from secateur.controls import controls_of
from secateur.counting import check_choice, check_number, check_progress, check_seed
from secateur.curvatures.class_axis import check_classes
from secateur.curvatures.jacobians import CURVATURES, curvature_rows, flat_weights, parts_of, unflattened_
from secateur.curvatures.outcomes import LABELS, NOTHING, Outcome, check_floor, judged, outcome_of
from secateur.errors import BadSparsity, NeedsTask
from secateur.granularities.unstructured import Unstructured
from secateur.masks import Masks
from secateur.notes import describe, notes_on
from secateur.profiling.profile import compare
from secateur.protocols import Allocation, Granularity, Targets
from secateur.quotas import Quota, leaving, quotas_of
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.solvers.surgeon import (
    damping_for,
    inverse_by_cholesky,
    inverse_by_recursion,
    refuse_many,
    saliencies,
    take_out,
)
from secateur.targets import Ignore, find_targets, refuse_unfinite
from secateur.task import Task

__all__ = ["Obs"]


@final
@dataclass(frozen=True, kw_only=True)
class Obs:
    """Prune weight by weight with the inverse Hessian of the whole network.

    Args:
        allocation: how much stays. Of `secateur.allocations.global_` (``scope="global"`` of `secateur.prune`) only the total and ``min_kept``
            count, and where is found out; others say it for every parameter, biases too. None: a stop rule decides.
        floor: the least quality (``task.evaluate``) that the network may have.
        most_rise: the largest total of predicted rises of the loss.
        curvature: "squared", "cross_entropy", "sampled" or "empirical"; see `secateur.curvatures.jacobians`.
        inverse: "cholesky", or "recursion", the paper's.
        alpha: added to the Hessian's diagonal; None: a tenth of its mean, so that steps stay where the quadratic holds. The paper takes 1e-8 to
            1e-4, which suits a network at a minimum that loses one weight at a time, with more samples than weights.
        each: weights that leave jointly in a stage.
        refresh: stages after which the Hessian is made anew; it is brought down by rank-one steps in between.
        include_bias: whether biases are weights.
        granularity: single weights only.
        ignore: what to leave alone.
        seed: for "sampled" and the random control.
        classes: the axis of the output that holds the classes, for "cross_entropy" and "sampled"; None: by its shape.
        progress: called with (weights gone, weights that may go at most, "weights", seconds left at most).
    """

    allocation: Allocation | None = None
    floor: float | None = None
    most_rise: float | None = None
    curvature: str = "squared"
    inverse: str = "cholesky"
    alpha: float | None = None
    each: int = 1
    refresh: int = 1
    include_bias: bool = True
    granularity: Granularity = field(default_factory=Unstructured)
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    seed: int = 0
    classes: int | None = None
    progress: Callable[[int, int, str, float], object] | None = field(default=None, compare=False, repr=False)

    by_name: ClassVar[str] = "any"
    may_empty: ClassVar[bool] = True  # `secateur.prune` keeps no unit in every layer that the user did not ask for

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_progress(self.progress)
        if self.granularity != Unstructured():
            raise BadSparsity(
                "the surgeon takes out single weights: granularity='unstructured'; for patterns use 'layer_obs'"
            )
        check_choice("curvature", self.curvature, CURVATURES)
        check_choice("inverse", self.inverse, ("cholesky", "recursion"))
        for name, least in (("most_rise", 0), ("floor", -math.inf)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), least)
        for name in ("each", "refresh"):
            check_number(name, getattr(self, name), 1, whole=True)
        if self.alpha is not None:
            check_number("alpha", self.alpha, 0, above=True)
        check_classes(self.classes)

    def __call__(
        self,
        model: nn.Module,
        *,
        task: Task | None = None,
        example_inputs: Any = None,
        retrain: Callable[[nn.Module, Masks], object] | None = None,
    ) -> Pruned:
        """Return a pruned copy of ``model``.

        Args:
            model: trained to a minimum; not touched.
            task: batches; ``evaluate`` for ``floor=`` and for the controls; ``loss`` for the curvature "empirical".
            example_inputs: for the receipt.
            retrain: called after every stage with the network and its masks; weights that are gone are set to zero again afterwards.

        Raises:
            NeedsTask, BadSparsity, NothingToPrune: see the parts. WrongModel: it has too many weights for a full inverse.
        """
        if task is None:
            raise NeedsTask("the surgeon needs data for the Hessian: pass task=sc.Task(batches)")
        if self.allocation is None and self.floor is None and self.most_rise is None:
            raise BadSparsity(
                "how much should leave? pass sparsity=, floor= (a quality) or most_rise= (of the predicted loss)"
            )
        if self.floor is not None:
            check_floor(model, task, self.floor)
        targets = find_targets(model, ignore=self.ignore, include_bias=self.include_bias)
        refuse_unfinite(model, targets)
        names, student = list(targets), copy.deepcopy(model)
        refuse_many(sum(model.get_parameter(name).numel() for name in names))
        quotas = self._quotas(model, targets)
        alive, trace, samples = self._operate(student, names, task, quotas, retrain)
        masks = Masks(parts_of(alive, student, names))
        masks.apply_(student)
        outcome = self._outcome(model, student, task) if trace else NOTHING
        stop_at = None if self.floor is self.most_rise is None else sum(quota.keep for quota in quotas)
        settings, said = judged(trace, outcome, steps_only=retrain is not None)
        advice = f"{said}: its steps are longer than the quadratic holds. Raise alpha=, lower each= (now {self.each}), or pass more samples"
        report = compare(
            model,
            student,
            example_inputs,
            task=task,
            method=self._said(samples),
            settings=settings,
            notes=(*([advice] if said else []), *notes_on(student, masks, stop_at=stop_at)),
        )
        together = isinstance(self.allocation, Global | None)
        found = controls_of(model, targets, masks, task, seed=self.seed, together=together)
        return Pruned(student, masks, replace(report, controls=found))

    def _operate(
        self,
        student: nn.Module,
        names: list[str],
        task: Task,
        quotas: tuple[Quota, ...],
        retrain: Callable[[nn.Module, Masks], object] | None,
    ) -> tuple[Tensor, list[dict[str, float]], int]:
        """Which weights are alive in the end, what each stage did, and how many samples it looked at."""
        alive = torch.ones_like(flat_weights(student, names), dtype=torch.bool)
        trace: list[dict[str, float]] = []
        sizes, keep = {name: student.get_parameter(name).numel() for name in names}, sum(q.keep for q in quotas)
        inverse, samples, rises, stage = torch.empty(0), 0, 0.0, 0
        began, most = time.monotonic(), len(alive) - keep
        while int(alive.sum()) > keep:
            if stage % self.refresh == 0 or retrain:
                inverse, samples = self._inverse(student, names, alive, task)
            weights, count = flat_weights(student, names), min(self.each, int(alive.sum()) - keep)
            again = not retrain and (stage + 1) % self.refresh > 0 and int(alive.sum()) - count > keep
            chosen = leaving(saliencies(weights, inverse, alive), sizes, quotas, count)
            fresh, rise, left = take_out(weights, inverse, alive, chosen, again=again)
            if self.most_rise is not None and rises + rise > self.most_rise:
                break
            row = self._carry_out(student, names, task, fresh=fresh, left=left, retrain=retrain)
            if row is None:
                break
            alive, rises, stage = left, rises + rise, stage + 1
            trace.append({"left": int(left.sum()), "predicted": rise} | row)
            self._tell(int((~alive).sum()), most, began)
        if trace:
            self._tell(int((~alive).sum()), int((~alive).sum()), began)  # a stop rule may end it early
        return alive, trace, samples

    def _carry_out(
        self,
        student: nn.Module,
        names: list[str],
        task: Task,
        *,
        fresh: Tensor,
        left: Tensor,
        retrain: Callable[[nn.Module, Masks], object] | None,
    ) -> dict[str, float] | None:
        """Give the network its new weights and say what that did; None, and all is as it was, where the quality falls below the floor."""
        earlier = copy.deepcopy(student)
        unflattened_(student, names, fresh)
        outcome = self._outcome(earlier, student, task)
        if retrain:
            masks = Masks(parts_of(left, student, names))
            retrain(student, masks)
            masks.apply_(student)
        if self.floor is None:
            return {"measured": outcome.rise}
        quality = float(task.needs_evaluate("floor=")(student))
        if quality < self.floor:
            student.load_state_dict(earlier.state_dict())
            return None
        return {"measured": outcome.rise, "quality": quality}

    def _tell(self, gone: int, most: int, began: float) -> None:
        if self.progress:
            self.progress(gone, most, "weights", (time.monotonic() - began) / gone * (most - gone))

    def _outcome(self, before: nn.Module, after: nn.Module, task: Task) -> Outcome:
        return outcome_of(before, after, task, self.curvature, who="the surgeon", classes=self.classes)

    def _inverse(self, student: nn.Module, names: list[str], alive: Tensor, task: Task) -> tuple[Tensor, int]:
        rows, samples = [], 0
        how: dict[str, Any] = {"seed": self.seed, "classes": self.classes}
        for part, count in curvature_rows(student, names, task, self.curvature, who="the surgeon", **how):
            rows.append(part.double()[:, alive])
            samples += count
        x = torch.cat(rows)  # of those that are left: the others are constants now
        make = inverse_by_recursion if self.inverse == "recursion" else inverse_by_cholesky
        at, found = alive.nonzero(), x.new_zeros(len(alive), len(alive))
        found[at, at.squeeze(1)] = make(x, samples, self.alpha or damping_for(x, samples))
        return found, samples

    def _quotas(self, model: nn.Module, targets: Targets) -> tuple[Quota, ...]:
        if self.allocation is None:
            return (Quota(tuple(targets), 0),)
        values = {name: model.get_parameter(name).detach() for name in targets}
        return quotas_of(self.allocation, self.granularity.pool(Scores(values, each=torch.abs, facts=targets)))

    def _said(self, samples: int) -> str:
        stops = [describe(self.allocation)] if self.allocation else []
        stops += [f"floor {self.floor:g}"] if self.floor is not None else []
        stops += [f"predicted rise up to {self.most_rise:g}"] if self.most_rise is not None else []
        damping = "of a tenth of the mean diagonal" if self.alpha is None else f"{self.alpha:g}"
        return f"optimal brain surgeon, {self.each} at a time, curvature {self.curvature!r} ({LABELS[self.curvature]}, {samples} samples), damping {damping}, until {', '.join(stops)}"
