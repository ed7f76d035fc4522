"""Gradual pruning in the user's own training loop (Zhu & Gupta 2017).

    run = Gradual(sparsity=0.9, schedule=PolynomialDecay(begin_step=500, end_step=5000)).start(model, optimizer)
    for batch in loader:
        optimizer.zero_grad(); loss(model, batch).backward(); optimizer.step(); run.step()
    pruned = run.finish()

Masks only shrink, unless the schedule says that it regrows. Between updates they hold exactly (see `secateur.training.holding`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.errors import BadSchedule, WrongModel
from secateur.masks import Masks
from secateur.names import allocation_of, criterion_of, granularity_of
from secateur.notes import describe, notes_on, too_late
from secateur.planning import agreed_sparsity, plan
from secateur.profiling.profile import compare, profile
from secateur.protocols import Criterion, Granularity, LiveCriterion, Schedule, Tracker
from secateur.report import Profile, Pruned
from secateur.schedules.polynomial import PolynomialDecay
from secateur.scores import Scores
from secateur.targets import Ignore, find_targets
from secateur.task import Task
from secateur.training.attached import Attached
from secateur.training.holding import Hold, hold

__all__ = ["Gradual", "GradualRun"]


@final
@dataclass(frozen=True, kw_only=True)
class Gradual:
    """Raise sparsity along a schedule while the model trains.

    Args:
        sparsity: the fraction removed at the end. With an N:M granularity leave it out: the pattern says it.
        schedule: how much when; steps count calls of ``run.step()``.
        criterion: a name or an object; ``Movement`` is gathered from the gradients of the training itself.
        granularity: a name or an object.
        scope: "global", "layer", "erk" or "lamp".
        overrides: sparsities of single layers, at the end of the schedule.
        min_kept: units that stay in every layer at least.
        ignore, include_bias: see `secateur.targets.find_targets`.
    """

    sparsity: float | None = None
    schedule: Schedule = field(default_factory=lambda: PolynomialDecay(begin_step=0, end_step=1000))
    criterion: str | Criterion | LiveCriterion = "magnitude"
    granularity: str | Granularity = "unstructured"
    scope: str = "global"
    overrides: Mapping[str, float] = field(default_factory=dict, hash=False)
    min_kept: int = 0
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    include_bias: bool = False

    def start(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        total_steps: int | None = None,
        task: Task | None = None,
        example_inputs: Any = None,
        copies: Iterable[nn.Module] = (),
    ) -> "GradualRun":
        """Begin on ``model``, in place.

        Args:
            model: the module in training.
            optimizer: its optimizer; zeros are restored after each of its steps.
            total_steps: how many optimizer steps the training will take, if known: a schedule that would end later is
                refused now instead of at `finish`.
            task: data for criteria that need it, and ``evaluate`` for the receipt.
            example_inputs: to measure MACs and latency for the receipt.
            copies: averaged copies (EMA) to keep sparse as well.

        Raises:
            BadSchedule: the schedule ends after ``total_steps``.
            BadSparsity, UnknownName, NothingToPrune: as for one-shot pruning.
        """
        if total_steps is not None and self.schedule.end_step > total_steps:
            raise BadSchedule(too_late(self.schedule, total_steps, self.sparsity))
        return GradualRun(self, model, optimizer, task=task, example_inputs=example_inputs, copies=copies)


class GradualRun(Attached):
    """A `Gradual` at work. Also holds masks for ``optimizer`` until `finish`."""

    def __init__(
        self,
        method: Gradual,
        model: nn.Module,
        optimizer: Any,
        *,
        task: Task | None,
        example_inputs: Any,
        copies: Iterable[nn.Module],
    ) -> None:
        self.method, self.model, self.task, self.example_inputs = method, model, task, example_inputs
        self.granularity = granularity_of(method.granularity)
        self._targets = find_targets(model, ignore=method.ignore, include_bias=method.include_bias)
        weights = {name: p.detach().to("meta") for name, p in self._parameters().items()}
        self._final = agreed_sparsity(self.granularity, Scores(weights, facts=self._targets), method.sparsity)
        self._criterion = criterion_of(method.criterion)
        self._tracker: Tracker | None = None
        if isinstance(self._criterion, LiveCriterion):
            self._tracker = self._criterion.track(model, self._targets)
        self._plan(self._final, within=None)  # a rehearsal: what cannot work is refused now, not hours into training
        self._before: Profile = profile(model, example_inputs, task=task)
        self._observe_hook: Any = optimizer.register_step_pre_hook(self._observe) if self._tracker else None
        self.steps = 0
        self._hold: Hold = hold(
            model, self._everything(), optimizer, mask_gradients=not method.schedule.regrows, copies=copies
        )
        try:
            self._renew_if_due()  # step 0 comes before the first optimizer step
        except Exception:
            self.release()
            raise
        self._at_start = self._versions()

    @property
    def masks(self) -> Masks:
        """What is kept now."""
        return self._hold.masks

    @property
    def sparsity(self) -> float:
        """What the schedule asks for now."""
        return self.method.schedule(self.steps, self._final)

    def step(self) -> None:
        """Count an optimizer step and renew the masks if the schedule says so."""
        self.steps += 1
        self._renew_if_due()

    def penalty(self) -> Tensor:
        """Zero: this method adds nothing to the loss."""
        return torch.zeros(())

    def watch(self, *copies: nn.Module) -> None:
        """Keep averaged copies of the model (EMA) sparse as well."""
        self._hold.watch(*copies)

    def finish(self) -> Pruned:
        """Check that the final sparsity was reached, let go of the optimizer and measure.

        Raises:
            BadSchedule: training stopped before the schedule did; hooks stay on, so training can go on.
        """
        if self.steps < self.method.schedule.end_step:
            now = self.method.schedule(self.steps, self._final)
            raise BadSchedule(too_late(self.method.schedule, self.steps, self._final, reached=now))
        self._hold.apply_()
        self.release()
        report = compare(
            self._before,
            self.model,
            self.example_inputs,
            task=self.task,
            method=f"gradual, {describe(self._criterion)}, {describe(self.granularity)}, scope {self.method.scope}, "
            f"sparsity {self._final:g}, {describe(self.method.schedule)}",
            notes=notes_on(self.model, self.masks),
        )
        return Pruned(self.model, self.masks, report)

    def release(self) -> None:
        """Take all hooks off without checking or measuring."""
        self._hold.release()
        if self._observe_hook is not None:
            self._observe_hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Steps, masks and gathered evidence: tensors and plain values, fit for ``torch.load(weights_only=True)``."""
        tracker = self._tracker.state_dict() if self._tracker else {}
        masks = {name: mask.clone() for name, mask in self.masks.items()}
        return {"steps": self.steps, "masks": masks, "tracker": tracker}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off. Start the run, load the model, load the optimizer, then this, in that order.

        Raises:
            WrongModel: the state belongs to another model, or the model was loaded before `start`, which pruned it anew.
        """
        if set(state["masks"]) != set(self._targets):
            raise WrongModel(
                "this state prunes other parameters than this run; was it saved from another model or ignore=?"
            )
        if self.masks.kept < self.masks.total and self.steps == 0 and self._versions() == self._at_start:
            raise WrongModel(
                "start() pruned this model at step 0 after its weights were loaded: start first, then load the model, the "
                "optimizer and the run, in that order"
            )
        self.steps = int(state["steps"])
        if self._tracker:
            self._tracker.load_state_dict(state["tracker"])
        self._hold.renew(Masks(dict(state["masks"])))

    def _observe(self, *_: object) -> None:
        if self._tracker:
            self._tracker.observe(self.model)

    def _renew_if_due(self) -> None:
        schedule, sparsity = self.method.schedule, self.sparsity
        if not schedule.updates_at(self.steps):
            return
        within = None if schedule.regrows else self.masks
        fresh = self._plan(sparsity, within) if sparsity > 0 else self._everything()
        self._hold.renew(fresh if schedule.regrows else fresh & self.masks)  # an earlier removal outlives every floor

    def _plan(self, sparsity: float, within: Masks | None) -> Masks:
        scores = self._scores()
        if self.granularity.quota is not None:
            return plan(scores, self.granularity, None, within=within)
        overrides = {key: value * sparsity / self._final for key, value in self.method.overrides.items()}
        allocation = allocation_of(self.method.scope, sparsity, overrides, self.method.min_kept)
        return plan(scores, self.granularity, allocation, within=within)

    def _scores(self) -> Scores:
        if self._tracker:
            found = self._tracker.scores()
        else:
            assert isinstance(self._criterion, Criterion)
            found = self._criterion(self.model, self._targets, self.task)
        return replace(found, facts=self._targets)

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: self.model.get_parameter(name) for name in self._targets}

    def _versions(self) -> list[int]:  # a write to a parameter counts its version up
        return [p._version for p in self._parameters().values()]

    def _everything(self) -> Masks:
        return Masks({name: torch.ones_like(p, dtype=torch.bool) for name, p in self._parameters().items()})
