"""Training under an energy budget, by projection (Yang, Zhu & Liu 2019, "Energy-constrained compression ... via weighted sparse projection", ICLR).

    min f(W)  subject to  E(W) <= B:      steps of the user's optimizer, then  W <- Proj(W) onto  E(W) <= B(t)      every so many steps
    Proj: keep the weights with the most w^2 for their energy, a 0/1 knapsack (their eq. 9);      B(t) = E_dense * (B / E_dense)^(t / end)

Between projections weights may come back. After ``end_step`` the zeros are held and the optimizer starts afresh. Any cost that knows what
single weights cost can be the budget's; ``energy`` is the analytic model of `secateur.energy.systolic`. The budget holds exactly at the end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.curvatures.running import Curvature
from secateur.errors import BadSchedule, UnknownName
from secateur.granularities.unstructured import Unstructured
from secateur.masks import Masks
from secateur.notes import notes_on
from secateur.planning import plan
from secateur.profiling.profile import compare, profile
from secateur.protocols import Cost
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.spending import Spending
from secateur.targets import Ignore, find_targets
from secateur.task import Task
from secateur.training.attached import Attached, last_step
from secateur.training.holding import Hold, hold
from secateur.training.teaching import Teaching

__all__ = ["EnergyConstrained", "EnergyConstrainedRun"]


@final
@dataclass(frozen=True, kw_only=True)
class EnergyConstrained:
    """Project onto a budget that tightens while the model trains.

    Args:
        budget: what the result may cost, such as ``"energy:40%"``.
        every: steps between projections.
        end_step: when the budget is reached and the zeros are held; None: after 60 % of ``total_steps``.
        exact: solve every knapsack exactly, not greedily (whose gap is below one weight's square).
        min_kept: weights that stay in every layer at least.
        metric: in which what is lost is measured: "euclid", w^2, as in the paper; or "fisher", F w^2, with F from the gradients of the
            training (`secateur.curvatures.running`): weights that the loss does not feel leave first, whatever their size.
        distill: how much the dense model counts as a teacher; its term is ``penalty()``.
        temperature: of the teacher; None for regression.
        cost: the cost that the budget is in, with parameters of its own, such as ``Energy(array=SystolicArray(rows=8))``.
        ignore: what to leave alone; it is paid for.
    """

    budget: str
    every: int = 10
    end_step: int | None = None
    exact: bool = False
    min_kept: int = 1
    metric: str = "euclid"
    distill: float = 0.0
    temperature: float | None = 4.0
    cost: Cost | None = None
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        if self.every < 1 or (self.end_step is not None and self.end_step < 0):
            raise BadSchedule(f"every={self.every} must be 1 or more and end_step={self.end_step} 0 or more")
        if self.metric not in ("euclid", "fisher"):
            raise UnknownName(
                f"metric={self.metric!r} is 'euclid' (the size of weights) or 'fisher' (how much the loss feels them)"
            )

    def start(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        example_inputs: Any = None,
        total_steps: int | None = None,
        task: Task | None = None,
        copies: Iterable[nn.Module] = (),
    ) -> "EnergyConstrainedRun":
        """Begin on ``model``, in place.

        Args:
            model: the module in training; train it first.
            optimizer: its optimizer.
            example_inputs: the model is run on them, to count energy.
            total_steps: how many steps the training will take; may be left out where ``end_step`` is given.
            task: ``evaluate`` for the receipt.
            copies: averaged copies (EMA) to keep sparse as well, once the zeros are held.

        Raises:
            BadSchedule: no ``end_step`` and no ``total_steps``, or the first after the second.
            NeedsTask, UnknownName, OverBudget, NothingToPrune: what is asked for cannot be had.
        """
        end = last_step(self.end_step, total_steps, "masks")
        return EnergyConstrainedRun(
            self, model, optimizer, end, example_inputs=example_inputs, task=task, copies=copies
        )


class EnergyConstrainedRun(Attached):
    """An `EnergyConstrained` at work."""

    def __init__(
        self,
        method: EnergyConstrained,
        model: nn.Module,
        optimizer: Any,
        end_step: int,
        *,
        example_inputs: Any,
        task: Task | None,
        copies: Iterable[nn.Module],
    ) -> None:
        self.method, self.model, self.optimizer, self.end_step = method, model, optimizer, end_step
        self.task, self._copies = task, tuple(copies)
        self._targets = find_targets(model, ignore=method.ignore)
        self.spending = Spending(model, method.budget, example_inputs, cost=method.cost)
        self._curvature = Curvature(model, optimizer, self._targets) if method.metric == "fisher" else None
        self._masks_at(self.spending.limit)  # a rehearsal: what cannot work is refused now
        self._before = profile(model, example_inputs, task=task)
        self.teaching = Teaching(model, method.distill, method.temperature)
        self._hold: Hold | None = None
        self.steps = 0

    @property
    def limit(self) -> float:
        """What may be spent now, in the cost's unit."""
        dense, final = self.spending.dense, self.spending.limit
        if self.steps >= self.end_step:
            return final
        return float(dense * (final / dense) ** (self.steps / self.end_step))

    @property
    def masks(self) -> Masks:
        """What is held, or what a projection would keep now."""
        return self._hold.masks if self._hold else self._masks_at(self.limit)

    def step(self) -> None:
        """Count an optimizer step; project if it is time."""
        self.steps += 1
        if self._hold is None and self.steps >= self.end_step:
            self._fix()
        elif self._hold is None and self.steps % self.method.every == 0:
            self._masks_at(self.limit).apply_(self.model)

    def penalty(self) -> Tensor:
        """The teacher's term; zero without ``distill``."""
        return self.teaching.term()

    def finish(self) -> Pruned:
        """Project onto the budget if that is not done, let go of the optimizer and measure."""
        early = self._hold is None
        if early:
            self._fix()
        assert self._hold is not None
        self._hold.apply_()
        masks = self._hold.masks
        self.release()
        said = (
            (f"Training stopped at step {self.steps}, before end_step={self.end_step}: W was projected as it was",)
            if early
            else ()
        )
        report = compare(
            self._before,
            self.model,
            self.spending.example_inputs,
            task=self.task,
            method=f"energy-constrained, {self.method.budget}, weighted sparse projection every {self.method.every} steps",
            notes=(*said, self.spending.says(self.model), *notes_on(self.model, masks)),
        )
        return Pruned(self.model, masks, report)

    def release(self) -> None:
        """Take all hooks off without projecting or measuring."""
        if self._hold is not None:
            self._hold.release()
        if self._curvature is not None:
            self._curvature.release()
        self.teaching.release()

    def state_dict(self) -> dict[str, Any]:
        """Steps, masks, the dense energy and the teacher: fit for ``torch.load(weights_only=True)``."""
        held = None if self._hold is None else {name: mask.clone() for name, mask in self._hold.masks.items()}
        return {
            "steps": self.steps,
            "masks": held,
            "dense": self.spending.dense,
            "limit": self.spending.limit,
            "teaching": self.teaching.state_dict(),
            "curvature": {} if self._curvature is None else self._curvature.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off. Start the run, load the model, load the optimizer, then this."""
        self.steps = int(state["steps"])
        self.spending.dense, self.spending.limit = float(state["dense"]), float(state["limit"])
        self.teaching.load_state_dict(state["teaching"])
        if self._curvature is not None:
            self._curvature.load_state_dict(state["curvature"])
        if state["masks"] is not None:
            self._hold = hold(self.model, Masks(dict(state["masks"])), self.optimizer, copies=self._copies)

    def _fix(self) -> None:
        self._hold = hold(self.model, self._masks_at(self.spending.limit), self.optimizer, copies=self._copies)
        self.optimizer.state.clear()

    def _masks_at(self, limit: float) -> Masks:
        weights = {name: self.model.get_parameter(name).detach() for name in self._targets}
        damage = self._curvature.damage(weights) if self._curvature else None
        scores = Scores(damage or weights, each=torch.abs, facts=self._targets)
        amount = self.spending.allocation(
            self._targets,
            limit,
            power=1.0 if damage else 2.0,
            exact=self.method.exact,
            min_kept=self.method.min_kept,
        )
        return plan(scores, Unstructured(), amount)
