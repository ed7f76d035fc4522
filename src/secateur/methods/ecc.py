"""ECC: a budget for coupled channels by primal-dual training (Yang, Zhu & Liu 2019, "ECC: Platform-independent energy-constrained DNN compression", CVPR).

    min loss(W)  subject to  units alive in group g <= s_g,   E(s) <= B               E bilinear in the widths; see `secateur.energy.primal_dual`

Units die a few at a time while the network trains, where that hurts least for the energy it saves; dead units are held at zero. At the end the
network is narrowed, measured, and, if a rounding missed the budget, narrowed a little further: the budget holds exactly.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.energy.primal_dual import PrimalDual
from secateur.errors import BadSchedule
from secateur.limits import absolute, limit_of
from secateur.masks import Masks
from secateur.narrowing.meeting import Met, measured, pricing_of
from secateur.narrowing.thinning import coupled, thin
from secateur.profiling.profile import profile
from secateur.projections import OntoChannels
from secateur.report import Pruned
from secateur.targets import Ignore
from secateur.task import Task
from secateur.training.attached import Attached, last_step
from secateur.training.holding import Hold, hold
from secateur.training.teaching import Teaching

__all__ = ["ECC", "ECCRun"]


@final
@dataclass(frozen=True, kw_only=True)
class ECC:
    """Find widths within a budget while the model trains, and narrow it.

    Args:
        budget: what the result may cost: ``"energy:40%"``, ``"latency:50%"``, ``"macs:30%"``, ...
        every: steps between updates of widths and multipliers.
        rho: strength of the constraints; larger gets to the budget sooner.
        rate: how far all widths together move in one update, as a fraction of the full ones; None: so that they could all fall to zero
            twice before ``end_step``.
        pull: how readily units die.
        end_step: when the widths are fixed at the latest; None: after 60 % of ``total_steps``.
        min_kept: units that stay in every group at least.
        distill: how much the dense model counts as a teacher (the authors': half); its term is ``penalty()``.
        temperature: of the teacher; None for regression.
        round_to: widths in multiples of this.
        ignore: layers whose channels stay.
    """

    budget: str
    every: int = 10
    rho: float = 1.0
    rate: float | None = None
    pull: float = 1.0
    end_step: int | None = None
    min_kept: int = 1
    distill: float = 0.0
    temperature: float | None = 4.0
    round_to: int = 1
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        if (
            self.every < 1
            or not self.rho > 0
            or (self.rate is not None and not 0 < self.rate <= 1)
            or not self.pull > 0
        ):
            raise BadSchedule(
                f"every={self.every} must be 1 or more, rho={self.rho}, rate={self.rate} and pull={self.pull} above 0"
            )

    def start(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        example_inputs: Any = None,
        total_steps: int | None = None,
        task: Task | None = None,
    ) -> "ECCRun":
        """Begin on ``model``, in place.

        Args:
            model: the module in training; train it first.
            optimizer: its optimizer.
            example_inputs: the model is run on them, to see what is coupled and what it costs.
            total_steps: how many steps the training will take; may be left out where ``end_step`` is given.
            task: ``evaluate`` for the receipt.

        Raises:
            BadSchedule: no ``end_step`` and no ``total_steps``.
            NeedsTask, NothingToPrune, OverBudget, UnknownName: what is asked for cannot be had.
        """
        end = last_step(self.end_step, total_steps, "widths")
        return ECCRun(self, model, optimizer, end, example_inputs=example_inputs, task=task)


class ECCRun(Attached):
    """An `ECC` at work."""

    def __init__(
        self, method: ECC, model: nn.Module, optimizer: Any, end_step: int, *, example_inputs: Any, task: Task | None
    ) -> None:
        self.method, self.model, self.optimizer, self.end_step = method, model, optimizer, end_step
        self.task, self.example_inputs = task, example_inputs
        coupling = coupled(model, example_inputs, ignore=method.ignore)
        asked = limit_of(method.budget, min_kept=max(1, method.min_kept))
        (self.dense,) = asked.cost.measure(
            [model], example_inputs
        )  # before there are zeros, which some costs do not count
        self.limit = absolute(asked, self.dense)
        self._onto = OntoChannels(model, coupling, example_inputs, round_to=method.round_to)
        self._weights = {name: model.get_parameter(name) for name in self._onto.names}
        self._onto.masks(self._weights, self.limit, None)  # a rehearsal: what cannot work is refused now
        pricing = pricing_of(self.limit.cost, coupling, coupling.graph or model, example_inputs)
        self.search = PrimalDual(
            pricing,
            self.limit.budget.amount / self.dense * pricing({}),
            rho=method.rho,
            rate=method.rate or 2 * math.sqrt(len(pricing.units)) * method.every / max(end_step, method.every),
            pull=method.pull,
            least=max(1, method.min_kept),
        )
        self._before = profile(model, example_inputs, task=task)
        self.teaching = Teaching(model, method.distill, method.temperature)
        everything = self._onto.spread({key: torch.ones(n, dtype=torch.bool) for key, n in pricing.units})
        self._hold: Hold = hold(model, everything, optimizer)
        self.steps, self.over = 0, False

    @property
    def masks(self) -> Masks:
        """What is alive, on the names of the model."""
        return self._hold.masks

    @property
    def widths(self) -> dict[str, int]:
        """Units alive by group."""
        return {key: int(alive.sum()) for key, alive in self._onto.channels.alive(self._hold.masks).items()}

    def step(self) -> None:
        """Count an optimizer step; move widths and multipliers, or fix them, if it is time."""
        self.steps += 1
        if self.over:
            return
        if self.steps % self.method.every == 0:
            self.search.step(self.widths)
            alive = self._onto.channels.alive(self._hold.masks)
            energies = {k: self._onto.energy(self._weights, k).masked_fill(~a, 0.0) for k, a in alive.items()}
            stay = {key: kept & alive[key] for key, kept in self.search.survivors(energies).items()}
            if self.search.excess({key: int(kept.sum()) for key, kept in stay.items()}) <= 0:
                self._fix()  # the last step takes no more than the budget asks for
                return
            self._hold.renew(self._onto.spread(stay) & self._hold.masks)
        if self.steps >= self.end_step:
            self._fix()

    def penalty(self) -> Tensor:
        """The teacher's term; zero without ``distill``."""
        return self.teaching.term()

    def finish(self) -> Pruned:
        """Fix the widths if they are not, and return a narrowed copy; the model itself is masked."""
        early = not self.over
        if early:
            self._fix()
        self._hold.apply_()
        masks = self.masks
        self.release()
        cost, wanted = self.limit.cost, self.limit.budget
        _, now = measured(self.model, self._onto.coupling, masks, cost, self.example_inputs)
        met = Met(masks=masks, dense=self.dense, limit=wanted.amount, cost=now)
        said = [met.says(wanted.cost, cost.unit)]
        if early:
            said.append(
                f"Training stopped at step {self.steps}, before the widths were fixed: they were fixed as it ended"
            )
        return thin(
            self.model,
            masks,
            self._onto.coupling,
            example_inputs=self.example_inputs,
            before=self._before,
            task=self.task,
            method=f"ECC, {self.method.budget}, every {self.method.every} steps, channels narrowed",
            settings={"widths": self.widths, "steps": self.steps},
            notes=said,
        )

    def release(self) -> None:
        """Take all hooks off without narrowing or measuring."""
        self._hold.release()
        self.teaching.release()

    def state_dict(self) -> dict[str, Any]:
        """Steps, masks, widths and multipliers: fit for ``torch.load(weights_only=True)``."""
        masks = {name: mask.clone() for name, mask in self._hold.masks.items()}
        state = {"steps": self.steps, "over": self.over, "masks": masks, "search": self.search.state_dict()}
        return state | {"teaching": self.teaching.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off. Start the run, load the model, load the optimizer, then this."""
        self.steps, self.over = int(state["steps"]), bool(state["over"])
        self.search.load_state_dict(state["search"])
        self.teaching.load_state_dict(state["teaching"])
        self._hold.renew(Masks(dict(state["masks"])))

    def _fix(self) -> None:
        """Measure for real, and take out what the budget still asks for."""
        cost, coupling = self.limit.cost, self._onto.coupling
        _, now = measured(self.model, coupling, self.masks, cost, self.example_inputs)
        if now > self.limit.budget.amount:
            self._hold.renew(self._onto.masks(self._weights, self.limit, self._hold.masks))
        self.over = True
        self.optimizer.state.clear()
