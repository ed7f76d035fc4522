"""GDP: which units are out changes while the network trains (Lin et al. 2018, "... via global & dynamic filter pruning", IJCAI).

    min over W, m of  L(W (.) m),    m = h(W),    |m|_0 <= beta       (their section 3; beta here also as what the result may cost)

    W <- W - lr * dL / d(W (.) m)                 all of W, so that what is out keeps learning and can come back (`secateur.training.sleeping`)
    score(unit) = | sum_r  dL/dW_r * W_r |        the first-order change of the loss, ranked over all layers at once

Masks are renewed every so many steps, not during warm-up; then they are fixed, and the rest of the training tunes what is left.

**What is masked, and what the sum runs over**: the weights that read a unit. For a filter with ReLU (and pooling) the sum is to the
last digit the paper's over the filter's own weights and bias, since these maps are homogeneous: both are dL/dg of a gate g = 1 on the
channel. Behind a batch norm in train mode the paper's form is identically 0, whatever the filter does (its scale does not matter to the
loss); the gate's derivative is not.

**When it is scored**: with all units in. (A network that has settled without some has no gradient along those that are in, and all of it
along those that are out: ranked so, the two change places at every renewal.) So the last ``batches`` steps before each renewal run with
all units in; their gradients go into the scores, averaged, and not into the weights. The authors' code does the same, but ranks by the
last batch alone. ``memory`` carries scores over from renewal to renewal, so that masks settle; 0 is the paper's.

**How fast what is out learns**: in the paper as fast as what is in (``pace=1``); in the authors' code not at all between renewals (0), since
the gradient is masked there as well. At full pace, units that are out drift and come back wrong (`secateur.training.sleeping`), and the more so the
more are out; so by default those of a group share one step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.counting import is_count
from secateur.coupling.channels import Channels
from secateur.errors import BadSchedule
from secateur.limits import check_units, share_of
from secateur.masks import Masks
from secateur.names import criterion_of, standing
from secateur.narrowing.thinning import choose, coupled, members_of, thin
from secateur.notes import describe
from secateur.profiling.profile import profile
from secateur.protocols import Criterion
from secateur.report import Pruned
from secateur.targets import Ignore
from secateur.task import Task
from secateur.training.attached import Attached, last_step
from secateur.training.sleeping import Sleep, reading_places
from secateur.training.turnover import Calendar, Turnover

__all__ = ["GDP", "GDPRun"]


@final
@dataclass(frozen=True, kw_only=True)
class GDP:
    """Let units leave and come back while the model trains, then narrow it.

    Args:
        sparsity: the fraction of the units removed, or
        budget: what the result may cost, e.g. ``"macs:50%"``; see `secateur.prune`.
        every: how many steps lie between renewals of the masks.
        batches: how many of these run with all units in, to score them; the optimizer does not move in them.
        warmup: steps before the first ``every``.
        end_step: when masks are renewed for the last time and become fixed; None: after 60 % of the training, as in the authors' code.
        memory: how much of the last renewal's scores stays in the next one's, in [0, 1); 0 is the paper's.
        pace: the part of the optimizer's steps that units take while they are out, in [0, 1]; 1 is the paper's, 0 that of the authors' code,
            None: one by the number of units of their group that are out.
        criterion: another score, by name or object; then no step is spent on scoring, and `GDP.start` needs its task.
        scope: "global" (one ranking; with a budget, by score per cost), "layer", ...
        min_kept: units that stay in every group at least; without a floor, whole layers can vanish.
        round_to: keep widths at multiples of this.
        ignore: layers whose channels stay.
    """

    sparsity: float | None = None
    budget: str | None = None
    every: int = 200
    batches: int = 20
    warmup: int = 0
    end_step: int | None = None
    memory: float = 0.7
    pace: float | None = None
    criterion: str | Criterion | None = None
    scope: str = "global"
    min_kept: int = 1
    round_to: int = 1
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        check_units(round_to=self.round_to, min_kept=self.min_kept)
        whole = all(map(is_count, (self.every, self.batches, self.warmup)))
        if not whole or not 1 <= self.batches < self.every or self.warmup < 0:
            raise BadSchedule(
                f"every={self.every}, batches={self.batches}, warmup={self.warmup}: needs whole numbers, 1 <= batches < every, since those steps train "
                "nothing, and warmup >= 0"
            )
        if self.pace is not None and not (isinstance(self.pace, int | float) and 0 <= self.pace <= 1):
            raise BadSchedule(
                f"pace={self.pace} must be in [0, 1], the part of each step that units take while they are out, or None: they share one"
            )
        if not isinstance(self.memory, int | float) or not 0 <= self.memory < 1:
            raise BadSchedule(
                f"memory={self.memory} must be in [0, 1): the part of the old scores that stays, e.g. 0.7"
            )

    def start(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        example_inputs: Any = None,
        total_steps: int | None = None,
        task: Task | None = None,
    ) -> "GDPRun":
        """Begin on ``model``, in place.

        Args:
            model: the module in training.
            optimizer: its optimizer; around each of its steps the whole weights are put back.
            example_inputs: the model is run on them to see what is coupled.
            total_steps: how many optimizer steps the training will take; may be left out where ``end_step`` is given.
            task: data for a ``criterion``, and ``evaluate`` for the receipt.

        Raises:
            NeedsTask: no ``example_inputs``, or a criterion without its task.
            BadSchedule: masks would be fixed before they were ever chosen, or after the training ends.
            NothingToPrune, WrongModel, BadSparsity, OverBudget, UnknownName: what is asked for cannot be had.
        """
        end = last_step(self.end_step, total_steps, "masks")
        if end < self.warmup + self.batches:
            raise BadSchedule(
                f"masks are fixed at step {end}: that must be after warmup={self.warmup} and {self.batches} batches; choose end_step= accordingly"
            )
        return GDPRun(self, model, optimizer, end_step=end, example_inputs=example_inputs, task=task)


class GDPRun(Attached):
    """A `GDP` at work."""

    def __init__(
        self, method: GDP, model: nn.Module, optimizer: Any, *, end_step: int, example_inputs: Any, task: Task | None
    ) -> None:
        self.method, self.model, self.task, self.example_inputs = method, model, task, example_inputs
        self._criterion = None if method.criterion is None else standing(criterion_of(method.criterion))
        self._coupling = coupled(model, example_inputs, ignore=method.ignore)
        self._members = members_of(self._coupling, model)
        self._channels = Channels(groups=self._coupling.groups())
        self._share = share_of(method.sparsity, method.budget, method.scope, method.min_kept)
        alike = {self._channels.key(group): torch.ones(group.units) for group in self._channels.groups}
        self._choose(self._judge() if self._criterion else alike)  # a rehearsal: what cannot work is refused now
        self._before = profile(model, example_inputs, task=task)
        self._turnover = Turnover(
            model,
            Sleep(model, reading_places(model, self._coupling, example_inputs), optimizer, pace=method.pace),
            optimizer,
            channels=self._channels,
            members=self._members,
            calendar=Calendar(every=method.every, batches=method.batches, warmup=method.warmup, end_step=end_step),
            choose=self._choose,
            judge=self._judge if self._criterion else None,
            memory=method.memory,
        )

    @property
    def masks(self) -> Masks:
        """What is in now, on the names of the model; in training only the weights that read a unit are zero while it is out."""
        return self._turnover.masks

    @property
    def listening(self) -> bool:
        """Whether all units are in, to be scored, and the optimizer moves nothing: no time to evaluate the model."""
        return self._turnover.ear.is_open

    @property
    def history(self) -> list[dict[str, int]]:
        """For every renewal so far: the step, how many units left, how many came back, and how many are in."""
        return self._turnover.history

    def step(self) -> None:
        """Count an optimizer step; begin to listen, renew the masks or fix them, if it is time."""
        self._turnover.step()

    def penalty(self) -> Tensor:
        """Zero: this method adds nothing to the loss."""
        return torch.zeros(())

    def finish(self) -> Pruned:
        """Let go of the optimizer and return a narrowed copy; the model itself is masked.

        Raises:
            BadSchedule: training stopped before the masks were fixed; hooks stay on, so training can go on.
        """
        over = self._turnover
        if over.hold is None:
            raise BadSchedule(
                f"masks become fixed at step {over.calendar.end_step}, but training stopped after {over.steps}: train on, or start with "
                "a smaller end_step= or total_steps="
            )
        over.hold.apply_()
        over.release()
        moved = f"In {len(over.history)} renewals {over.left} units left, and {over.returned} came back"
        return thin(
            self.model,
            self.masks,
            self._coupling,
            example_inputs=self.example_inputs,
            before=self._before,
            task=self.task,
            method=_said(self.method, self._criterion, over.calendar),
            settings={"left": over.left, "returned": over.returned, "history": over.history},
            notes=(moved, *over.said),
        )

    def release(self) -> None:
        """Take all hooks off without checking or measuring."""
        self._turnover.release()

    def state_dict(self) -> dict[str, Any]:
        """Steps, masks, scores and the weights of what is out: fit for ``torch.load(weights_only=True)``."""
        return self._turnover.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off. Start the run, load the model, load the optimizer, then this."""
        self._turnover.load_state_dict(state)

    def _judge(self) -> dict[str, Tensor]:
        assert self._criterion is not None
        units = self._channels.pool(replace(self._criterion(self.model, self._members, self.task), facts=self._members))
        return {key: units[key].reshape(-1).float().cpu() for key in units}

    def _choose(self, scores: Mapping[str, Tensor]) -> tuple[Masks, tuple[str, ...]]:
        values = {name: self.model.get_parameter(name).detach() for name in self._members}
        return choose(
            self.model,
            self._coupling,
            self._channels.scores_of(scores, values),
            self._share,
            example_inputs=self.example_inputs,
            round_to=self.method.round_to,
        )


def _said(method: GDP, criterion: Criterion | None, calendar: Calendar) -> str:
    share = method.budget or f"sparsity {method.sparsity:g}"
    judged = describe(criterion) if criterion else f"first-order Taylor over {method.batches} batches"
    return (
        f"GDP, {judged}, memory {method.memory:g}, pace {'shared' if method.pace is None else f'{method.pace:g}'}, renewed every {calendar.every} steps from {calendar.warmup} to {calendar.end_step}, "
        f"scope {method.scope}, {share}, channels narrowed"
    )
