"""Second order for millions of weights: the whole network's quadratic from gradients (WoodFisher; M-FAC; CHITA).

    Q(w) = 1/2 (w - w0)^T (1/n G^T G + damping I) (w - w0),       G: n gradients of single samples at w0

    solver "blocks"   inverse on consecutive blocks of weights, scores w^2 / (2 [F^-1]_qq), all that leaves is removed jointly per block
                      (Singh & Alistarh 2020)
    solver "joint"    the same support, all survivors of the network solved for jointly through an n x n system (Frantar et al. 2021)
    solver "search"   the support is searched for too, by exchanges (CBS, Yu et al. 2022; the problem of CHITA, Benbaki et al. 2023)

In several stages the quadratic is made anew from fresh gradients on the way to the sparsity (CHITA++): one expansion does not reach 95 %.
"""

import copy
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
from secateur.curvatures.outcomes import LABELS
from secateur.errors import BadCalibration, BadSparsity, NeedsTask
from secateur.granularities.unstructured import Unstructured
from secateur.masks import Masks
from secateur.notes import describe, notes_on
from secateur.planning import plan
from secateur.profiling.profile import compare
from secateur.protocols import Allocation, Granularity, Targets
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.solvers.block_inverse import block_inverse_diagonal, block_removal
from secateur.solvers.l0_regression import best_few, solve_on_support
from secateur.targets import Ignore, find_targets, refuse_unfinite
from secateur.task import Task
from secateur.training.recalibration import recalibrate_

__all__ = ["BlockFisher"]

SOLVERS = ("blocks", "joint", "search")


@final
@dataclass(frozen=True, kw_only=True)
class BlockFisher:
    """Prune a network by the quadratic of its gradients.

    Args:
        allocation: how much stays where; None for N:M.
        solver: "blocks", "joint" or "search".
        curvature: "empirical" (the task's loss and labels), "sampled" (labels drawn from the model: none of the task's are used) or
            "cross_entropy" (exact, a row for each class).
        samples: gradients at most.
        stages: times that gradients are made, at sparsities in between that remove the same part of what is left each time.
        block: weights in a block, for "blocks" and for the first support.
        damping: added to the diagonal, an absolute number.
        norms: whether batch-norm statistics are refreshed on the batches after every stage.
        granularity: what leaves together.
        ignore: what to leave alone.
        seed: for "sampled" and the random control.
        classes: the axis of the output that holds the classes, for "cross_entropy" and "sampled"; None: by its shape
            (`secateur.curvatures.class_axis`).
        progress: called after every batch and every stage with (gradients made, gradients in all at most, what, seconds left at most).
    """

    allocation: Allocation | None = None
    solver: str = "search"
    curvature: str = "empirical"
    samples: int = 1000
    stages: int = 1
    block: int = 500
    damping: float = 1e-5
    norms: bool = True
    granularity: Granularity = field(default_factory=Unstructured)
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    seed: int = 0
    classes: int | None = None
    progress: Callable[[int, int, str, float], object] | None = field(default=None, compare=False, repr=False)

    by_name: ClassVar[str] = "any"
    clocked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_progress(self.progress)
        check_choice("solver", self.solver, SOLVERS)
        check_choice("curvature", self.curvature, CURVATURES)
        check_classes(self.classes)
        check_number("damping", self.damping, 0, above=True)
        for name in ("samples", "stages", "block"):
            check_number(name, getattr(self, name), 1, whole=True)
        if self.stages > 1 and not hasattr(self.allocation, "sparsity"):
            raise BadSparsity(
                f"stages={self.stages} raise one sparsity step by step: pass sparsity= without overrides, or stages=1"
            )

    def __call__(self, model: nn.Module, *, task: Task | None = None, example_inputs: Any = None) -> Pruned:
        """Return a pruned copy of ``model``.

        Raises:
            NeedsTask: no batches, or no loss for the curvature "empirical".
            NothingToPrune, BadSparsity, BadPattern: see the parts.
        """
        if task is None:
            raise NeedsTask("the Fisher matrix needs data: pass task=sc.Task(batches, loss=lambda model, batch: ...)")
        if self.allocation is None and self.granularity.quota is None:
            raise BadSparsity("how much should leave? pass sparsity=, the fraction removed, e.g. sparsity=0.9")
        targets = find_targets(model, ignore=self.ignore)
        refuse_unfinite(model, targets)
        student, masks = copy.deepcopy(model), None
        seen, tell = 0, self._teller()
        for stage in range(1, self.stages + 1):
            masks, seen = self._stage(student, targets, task, stage, within=masks, tell=tell)
            if self.norms:
                recalibrate_(student, task.each_batch("batch norms"))
            tell(stage * self.samples, f"stage {stage}")
        assert masks is not None
        settings = {"gradients": seen, "labels": self.curvature == "empirical", "damping": self.damping}
        report = compare(
            model,
            student,
            example_inputs,
            task=task,
            method=self._said(seen),
            settings=settings,
            notes=notes_on(student, masks),
        )
        together = isinstance(self.allocation, Global)
        found = controls_of(
            model, targets, masks, task, granularity=self.granularity, seed=self.seed, together=together
        )
        return Pruned(student, masks, replace(report, controls=found))

    def _at(self, stage: int) -> Allocation | None:
        if stage == self.stages or self.allocation is None:
            return self.allocation
        final = float(self.allocation.sparsity)  # type: ignore[attr-defined]
        return replace(self.allocation, sparsity=1 - (1 - final) ** (stage / self.stages))  # type: ignore[type-var]

    def _teller(self) -> Callable[[int, str], None]:
        began, total = time.monotonic(), self.stages * self.samples

        def tell(done: int, what: str) -> None:
            if self.progress:
                self.progress(done, total, what, (time.monotonic() - began) / max(done, 1) * (total - done))

        return tell

    def _stage(
        self,
        student: nn.Module,
        targets: Targets,
        task: Task,
        stage: int,
        *,
        within: Masks | None,
        tell: Callable[[int, str], None],
    ) -> tuple[Masks, int]:
        names = list(targets)
        before = (stage - 1) * self.samples
        rows, seen = self._gradients(
            student, names, task, lambda done: tell(before + min(done, self.samples), f"stage {stage}, gradients")
        )
        w0 = flat_weights(student, names).to(rows.dtype)
        choose = self._chooser(student, targets, self._at(stage), within)
        diagonal = block_inverse_diagonal(rows, self.block, self.damping).to(w0.dtype)
        mask = choose(w0.square() / (2 * diagonal))
        if self.solver == "blocks":
            w = block_removal(w0, rows, mask, self.block, self.damping)
        elif self.solver == "joint":
            w = solve_on_support(w0, rows, mask, self.damping)
        else:
            w, mask = best_few(w0, rows, choose, support=mask, damping=self.damping)
        unflattened_(student, names, w * mask)
        return Masks(parts_of(mask, student, names)), seen

    def _gradients(
        self, student: nn.Module, names: list[str], task: Task, told: Callable[[int], None]
    ) -> tuple[Tensor, int]:
        found, seen = [], 0
        how: dict[str, Any] = {"seed": self.seed, "most": self.samples, "classes": self.classes}
        for rows, samples in curvature_rows(student, names, task, self.curvature, who="the Fisher matrix", **how):
            found.append(rows.float() if rows.element_size() < 4 else rows)
            seen += samples
            told(seen)
        if not found or not any(bool(rows.any()) for rows in found):
            raise BadCalibration(
                "all gradients are zero: Task.loss does not depend on the weights (detached, or times zero), or nothing is left to learn"
            )
        each = max(1, round(sum(map(len, found)) / seen))  # rows of a sample
        rows = torch.cat(found)[: self.samples * each]
        return rows * each**0.5, min(seen, self.samples)  # the mean over rows is then the sum over a sample's rows

    def _chooser(
        self, student: nn.Module, targets: Targets, allocation: Allocation | None, within: Masks | None
    ) -> Callable[[Tensor], Tensor]:
        names = list(targets)

        def choose(evidence: Tensor) -> Tensor:
            scores = Scores(parts_of(evidence, student, names), facts=targets)
            masks = plan(scores, self.granularity, allocation, within=within)
            return torch.cat([masks[name].flatten() for name in names])

        return choose

    def _said(self, samples: int) -> str:
        return (
            f"network-wide second order, {self.solver!r} from {self.curvature!r} gradients of {samples} samples ({LABELS[self.curvature]}) in {self.stages} "
            f"stage(s), {describe(self.granularity)}, {describe(self.allocation)}, damping {self.damping:g}"
        )
