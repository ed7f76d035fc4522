"""Layer-wise optimal brain surgery from unlabelled data (Dong, Chen & Pan 2017; Frantar & Alistarh 2022, 2023).

Every layer is a quadratic of its own, E = 1/n sum_j || W x_j - W' x'_j ||^2, with one Hessian for all of its outputs. Layers are pruned
in the order in which they run, block by block, with the survivors solved for jointly; the next layer then takes in what the pruned ones
give. Nothing is ever run backwards unless budgets are weighed by gradients, and no labels are used by the surgery itself.

    targets  "own"     W x' with the inputs of the pruned network on both sides (SparseGPT)
             "dense"   W x, what the dense network's layer gave: errors of earlier layers are made up for
             "apart"   W x with dense inputs on both sides (Dong et al. 2017, eq. 2; OBC): layers do not know of each other
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, final

import torch
from torch import nn

from secateur.allocations.by_error import ByError
from secateur.allocations.priced import Priced
from secateur.controls import controls_of
from secateur.counting import check_choice, check_number, check_progress, check_seed
from secateur.error_curves import counts_by_error, priced_by_error
from secateur.errors import BadSparsity, NeedsTask, UnknownName
from secateur.examples import plain_attention
from secateur.facts import LayerFacts
from secateur.granularities.unstructured import Unstructured
from secateur.layerwise.block_tuning import Tuning
from secateur.layerwise.calibration import Calibration, Settings
from secateur.layerwise.done import Done
from secateur.layerwise.error_bound import bound_of
from secateur.layerwise.holdout import HELD_OUT
from secateur.layerwise.listening_in import surgical_targets
from secateur.layerwise.surgery import SOLVERS, refits
from secateur.masks import Masks
from secateur.notes import describe, notes_on
from secateur.profiling.profile import compare
from secateur.protocols import Allocation, Granularity
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.targets import Ignore, ignored_parameters, refuse_unfinite
from secateur.task import Task
from secateur.training.recalibration import recalibrate_
from secateur.units import Units

__all__ = ["LayerObs"]

TARGETS = ("own", "dense", "apart")


@final
@dataclass(frozen=True, kw_only=True)
class LayerObs:
    """Prune layer by layer with exact repair, on a task's batches.

    Args:
        allocation: how much of each layer stays; None for N:M. `secateur.allocations.global_` (``scope="global"`` of `secateur.prune`)
            and ``budget=`` find what each gets from the layers' errors by dynamic programming; ``scope="layer"`` takes the same of each.
        granularity: what leaves together.
        solver: "columns", "exact", "split", "scores", "activation", "magnitude" or "random"; see `secateur.layerwise.surgery`.
        refit: solve for all survivors of a layer jointly in the end; "exact" ends there anyway, and the last three move nothing.
        targets: what a pruned layer is to give: "own", "dense" or "apart".
        order: "layers": a layer takes in what the pruned layers before it in its block give; "blocks": what the dense block gives.
        damping: added to Hessians, as a fraction of the mean diagonal; "held_out": for each layer what does best on batches that its fit did
            not see (`secateur.layerwise.holdout`), which matters where samples are few beside its inputs.
        block: columns that the solver "columns" decides together.
        samples: places (patches, tokens) taken of each batch and layer at most, at random.
        blocks: the paths of the blocks, where they are not found by themselves.
        tune: passes over the batches in which the survivors of a block are tuned together towards what the dense block gives
            (`secateur.layerwise.block_tuning`); 0: none.
        rate: of that tuning.
        norms: whether batch-norm statistics are refreshed on the batches in the end.
        folder: where finished blocks are written, so that a run that was killed goes on where it was.
        ignore: what to leave alone.
        seed: which places are taken; the random control.
        progress: called with (blocks done, blocks in all, block, seconds left).
    """

    allocation: Allocation | None = None
    granularity: Granularity = field(default_factory=Unstructured)
    solver: str = "columns"
    refit: bool = True
    targets: str = "own"
    order: str = "layers"
    damping: float | str = 0.01
    block: int = 128
    samples: int = 1 << 16
    blocks: tuple[str, ...] | None = None
    tune: int = 0
    rate: float = 3e-4
    norms: bool = True
    folder: str | None = None
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    seed: int = 0
    progress: Callable[[int, int, str, float], object] | None = field(default=None, compare=False, repr=False)

    by_name: ClassVar[str] = "any"  # `secateur.prune` takes this method by its name, at any granularity of masks
    clocked: ClassVar[bool] = True  # and keeps budgets in the engine's time with it

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_progress(self.progress)
        yes_no = (True, False)
        known = {"solver": SOLVERS, "targets": TARGETS, "order": ("layers", "blocks"), "refit": yes_no, "norms": yes_no}
        for name, words in known.items():
            check_choice(name, getattr(self, name), words)
        if isinstance(self.damping, str):
            check_choice("damping", self.damping, (HELD_OUT,), "a number, ")
        else:
            check_number("damping", self.damping, 0)
        for name, least in (("samples", 1), ("block", 1), ("tune", 0)):
            check_number(name, getattr(self, name), least, whole=True)
        check_number("rate", self.rate, 0, above=True)
        if isinstance(self.blocks, str):
            raise UnknownName(
                f"blocks={self.blocks!r} is one text: pass the paths of the blocks, e.g. ({self.blocks!r},)"
            )

    def __call__(self, model: nn.Module, *, task: Task | None = None, example_inputs: Any = None) -> Pruned:
        """Return a pruned copy of ``model`` with masks and receipt.

        Raises:
            NeedsTask: no batches.
            BadCalibration: the batches hold NaN, or are constant.
            NothingToPrune, UnknownName, BadPattern, BadSparsity: see the parts.
        """
        return self.into(model, lambda: copy.deepcopy(model), task=task, example_inputs=example_inputs)

    def into(
        self,
        model: nn.Module,
        make: Callable[[], nn.Module],
        *,
        task: Task | None = None,
        example_inputs: Any = None,
        lean: bool = False,
    ) -> Pruned:
        """Prune a copy of ``model`` in place.

        Args:
            model: the dense network.
            make: gives the copy, the same weights in memory of their own; called when all is checked.
            task: as in calling.
            example_inputs: as in calling.
            lean: hold no second copy of anything as large as the network: no controls, and masks stay in the files of ``folder``.
        """
        if self.allocation is None and self.granularity.quota is None:
            raise BadSparsity("how much should leave? pass sparsity=, the fraction removed, e.g. sparsity=0.5")
        with plain_attention():
            targets, calibration = self._prepared(model, task, lean=lean)
            counts = self._counts(model, targets, calibration)
            journal = calibration.journal(counts)
            pruned = make()
            done = calibration.operate_(pruned, counts, journal)
            masks = Masks({name: done.masks[name] for name in targets})
            if self.norms:
                recalibrate_(pruned, calibration.inputs())
            self._bound(model, pruned, calibration, done)
        report = compare(
            model,
            pruned,
            example_inputs,
            task=task,
            method=self._said(calibration, done),
            settings={
                "layers": done.rows,
                "blocks": done.blocks,
                "bound": done.bound,
                "batches": len(calibration.batches),
            },
            notes=(*calibration.said(), *done.said(tuning=self.tune > 0), *notes_on(pruned, masks)),
        )
        found = {} if lean else controls_of(model, targets, masks, task, granularity=self.granularity, seed=self.seed)
        return Pruned(pruned, masks, replace(report, controls=found))

    def allot(self, model: nn.Module, task: Task | None) -> Callable[[Priced], Allocation]:
        """How to spend what others would spend by scores: by errors, measured once."""
        with plain_attention():
            targets, calibration = self._prepared(model, task)
        units, found = self._units(model, targets), list[ByError]()

        def allot(priced: Priced) -> Allocation:
            if not found:
                with plain_attention():
                    found.append(priced_by_error(calibration, units, priced))
            return replace(found[0], limit=priced.limit, fixed=priced.fixed)

        return allot

    def _prepared(
        self, model: nn.Module, task: Task | None, *, lean: bool = False
    ) -> tuple[dict[str, LayerFacts], Calibration]:
        if task is None:
            raise NeedsTask(
                "layer-wise surgery looks at what layers take in: pass task=sc.Task(batches); labels are not used"
            )
        targets = surgical_targets(model, self.ignore)
        refuse_unfinite(model, targets)
        settings = replace(
            self.settings(tuple(sorted(ignored_parameters(model, self.ignore))) if self.tune else ()), lean=lean
        )
        calibration = Calibration(model, targets, task, settings)
        if self.damping == HELD_OUT and len(calibration.batches) < 2:
            raise NeedsTask(
                f"damping={HELD_OUT!r} fits on one half of the batches and judges on the other: pass two batches or more"
            )
        return targets, calibration

    def _units(self, model: nn.Module, targets: dict[str, LayerFacts]) -> Units:
        scores = Scores(
            {name: model.get_parameter(name).detach() for name in targets}, each=torch.square, facts=targets
        )
        return self.granularity.pool(scores)

    def _bound(self, model: nn.Module, pruned: nn.Module, calibration: Calibration, done: Done) -> None:
        shared = any(len(uses) > 1 for uses in calibration.uses.values())
        if self.targets != "dense" and not self.tune and not shared:
            seen: dict[str, Any] = {
                "batches": calibration.batches,
                "task": calibration.task,
                "apart": self.targets == "apart",
            }
            done.bound = bound_of(model, pruned, calibration.chain, done.rows, **seen)

    def settings(self, left_alone: tuple[str, ...] = ()) -> Settings:
        """What the calibration needs to know; ``left_alone``: what no tuning may move."""
        own: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Settings) if hasattr(self, f.name)}
        tuning = Tuning(epochs=self.tune, lr=self.rate, seed=self.seed, left_alone=left_alone) if self.tune else None
        return Settings(**own, tuning=tuning)

    def _counts(self, model: nn.Module, targets: dict[str, LayerFacts], calibration: Calibration) -> dict[str, int]:
        """Units that stay, by parameter."""
        units = self._units(model, targets)
        if self.granularity.quota is not None:
            return {name: self.granularity.quota * units.tables[name].shape[0] for name in units}
        assert self.allocation is not None
        return counts_by_error(calibration, units, self.allocation)

    def _said(self, calibration: Calibration, done: Done) -> str:
        labels = "labels weigh the errors of layers (Task.loss), nothing else" if calibration.labelled else "no labels"
        most = max((row["samples"] for row in done.rows), default=0)
        refitted = ", survivors solved for jointly" if refits(self.solver, refit=self.refit) else ""
        return (
            f"layer-wise surgery, {self.solver}{refitted}, {describe(self.granularity)}, {describe(self.allocation)}, targets {self.targets!r}, "
            f"damping {self.damping}, {len(calibration.batches)} batches, up to {most:,} samples of a layer's inputs, {labels}"
        )
