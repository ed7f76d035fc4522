"""How ADMM goes through its stages: iterate, cut, retrain; again at the next sparsity."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.alternating.duals import Splitting
from secateur.alternating.stages import Settings, Stages
from secateur.errors import BadSparsity, WrongModel
from secateur.limits import absolute, share_of
from secateur.masks import Masks
from secateur.names import allocation_of, granularity_of
from secateur.narrowing.meeting import Limit
from secateur.narrowing.thinning import coupled, thin
from secateur.notes import describe, notes_on
from secateur.planning import agreed_sparsity
from secateur.profiling.profile import compare, profile
from secateur.projections import OntoChannels, OntoPattern
from secateur.protocols import Allocation
from secateur.quantising import to_levels
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.targets import find_targets
from secateur.task import Task
from secateur.training.holding import Hold, hold
from secateur.training.teaching import Teaching

__all__ = ["Relay"]


class Relay:
    """ADMM on one model and optimizer."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        method: Settings,
        stages: Stages,
        *,
        task: Task | None,
        example_inputs: Any,
        copies: tuple[nn.Module, ...],
    ) -> None:
        self.model, self.optimizer, self.method, self.stages = model, optimizer, method, stages
        self.task, self.example_inputs, self._copies = task, example_inputs, copies
        self.projection = _projection(model, method, example_inputs)
        self._hold: Hold | None = None
        self._shares = [self._share(sparsity) for sparsity in stages.sparsities]
        self.splitting = Splitting(model, self.projection.names, rho=method.rho, bits=method.bits)
        self._begin(0)  # also a rehearsal: what cannot work is refused now, not hours into training
        self._before = profile(model, example_inputs, task=task)
        self.teaching = Teaching(model, method.distill, method.temperature)
        self.steps, self.over = 0, False
        self.history: list[dict[str, float]] = []

    @property
    def masks(self) -> Masks:
        """Held, or what a projection of W would keep."""
        return self._hold.masks if self._hold and self.over else self._masks(self.splitting.weights(), self._stage)

    def penalty(self) -> Tensor:
        """Of this step."""
        pulled = self.splitting.penalty() if self._pulling else torch.zeros(())
        return pulled + self.teaching.term().to(pulled.device)

    def step(self) -> None:
        """Count and do what is due."""
        self.steps += 1
        stage, done = self.stages.at(self.steps)
        length = self.stages.every * self.stages.iterations
        if done == 0 and stage > self._stage:
            self._begin(stage)
        elif done % self.stages.every == 0 and self._pulling:
            within = self._hold.masks if self._hold and done > length else None
            masks = within or self._masks(self.splitting.shifted(), stage)
            found = self.splitting.update(self.projection.bound(masks))
            self.history.append({"step": self.steps, "sparsity": masks.sparsity} | found)
            if done <= length:
                self.splitting.strengthen(self.method.growth)
        if done == length:
            self._cut(stage)

    def finish(self) -> Pruned:
        """See `secateur.methods.admm.ADMMRun.finish`."""
        last, early = len(self._shares) - 1, not self.over
        if early:
            self._stage = last
            self._cut(last)
        assert self._hold is not None
        self._hold.apply_()
        if self.method.bits is not None:
            self._quantise_(self.method.bits)
        masks = self._hold.masks
        self.release()
        notes = (*self._notes(early), *notes_on(self.model, masks))
        if isinstance(self.projection, OntoChannels):
            return thin(
                self.model,
                masks,
                self.projection.coupling,
                example_inputs=self.example_inputs,
                before=self._before,
                task=self.task,
                method=self._said(),
                settings={"history": self.history},
                notes=(*notes, *self.projection.said),
            )
        report = compare(
            self._before,
            self.model,
            self.example_inputs,
            task=self.task,
            method=self._said(),
            settings={"history": self.history},
            notes=notes,
        )
        return Pruned(self.model, masks, report)

    def release(self) -> None:
        """Hooks off."""
        if self._hold is not None:
            self._hold.release()
        self.teaching.release()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model and the optimizer."""
        held = None if self._hold is None else {name: mask.clone() for name, mask in self._hold.masks.items()}
        return {
            "steps": self.steps,
            "stage": self._stage,
            "over": self.over,
            "masks": held,
            "history": [dict(row) for row in self.history],
            "splitting": self.splitting.state_dict(),
            "teaching": self.teaching.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up again.

        Raises:
            WrongModel: the state splits other parameters.
        """
        if set(state["splitting"]["z"]) != set(self.projection.names):
            raise WrongModel(
                "this state prunes other parameters than this run; was it saved from another model, granularity= or ignore=?"
            )
        self.steps, self._stage, self.over = int(state["steps"]), int(state["stage"]), bool(state["over"])
        self.history = [dict(row) for row in state["history"]]
        self.splitting.load_state_dict(state["splitting"])
        self.teaching.load_state_dict(state["teaching"])
        if state["masks"] is not None:
            self._hold_(Masks(dict(state["masks"])))

    @property
    def _pulling(self) -> bool:
        """Whether the penalty is on: while iterating, and with levels to the end."""
        if self.over:
            return self.method.bits is not None
        return self.stages.at(self.steps)[1] <= self.stages.every * self.stages.iterations

    def _begin(self, stage: int) -> None:
        self._stage = stage
        self.splitting.rho = self.method.rho
        self.splitting.begin(self.projection.bound(self._masks(self.splitting.weights(), stage)))

    def _cut(self, stage: int) -> None:
        """Project W itself, hold the zeros, and forget what the optimizer knew."""
        self._hold_(self._masks(self.splitting.weights(), stage))
        self.over = stage == len(self._shares) - 1
        if self.method.fresh_optimizer:
            self.optimizer.state.clear()

    def _masks(self, values: Mapping[str, Tensor], stage: int) -> Masks:
        return self.projection.masks(values, self._shares[stage], self._hold.masks if self._hold else None)

    def _hold_(self, masks: Masks) -> None:
        if self._hold is None:
            self._hold = hold(self.model, masks, self.optimizer, copies=self._copies)
        else:
            self._hold.renew(masks)

    @torch.no_grad()
    def _quantise_(self, bits: int) -> None:
        for name in self.projection.names:
            parameter = self.model.get_parameter(name)
            parameter.copy_(to_levels(parameter, bits))

    def _share(self, sparsity: float | None) -> Allocation | Limit | None:
        method = self.method
        if isinstance(self.projection, OntoChannels):
            share = share_of(sparsity, method.budget, method.scope, max(1, method.min_kept))
            if not isinstance(share, Limit):
                return share
            (dense,) = share.cost.measure([self.model], self.example_inputs)
            return absolute(share, dense)  # zeros may come; the budget stays
        if method.budget is not None:
            raise BadSparsity(
                f"budget={method.budget!r} needs granularity='channel'; for energy see sc.methods.EnergyConstrained"
            )
        pattern, weights = self.projection.granularity, {n: self.model.get_parameter(n) for n in self.projection.names}
        agreed = agreed_sparsity(pattern, Scores(weights, facts=self.projection.facts), sparsity)
        if pattern.quota is not None:
            return None
        return allocation_of(method.scope, agreed, method.overrides, method.min_kept)

    def _notes(self, early: bool) -> tuple[str, ...]:
        notes = []
        if self.history:
            iterations = [row for row in self.history if row["step"] <= self.stages.last_cut]
            apart = iterations[-1]["primal"]
            far = "; that is far, the cut was nearly one-shot pruning: raise rho or growth" if apart > 0.3 else ""
            notes.append(
                f"{len(iterations)} ADMM iterations; at the last one W was {apart:.1%} of its size away from its projection{far}"
            )
        if early:
            due = self.stages.last_cut
            notes.append(
                f"Training stopped at step {self.steps}, before the cut at {due}: W was projected as it was, not retrained"
            )
        if self.method.bits is not None:
            notes.append(f"Kept weights are at one of {2**self.method.bits - 1} equally spaced levels per tensor")
        return tuple(notes)

    def _said(self) -> str:
        method = self.method
        share = method.budget or ("" if method.sparsity is None else f"sparsity {method.sparsity:g}")
        grown = f" growing by {method.growth:g}" if method.growth != 1 else ""
        pattern = (
            "channels narrowed" if isinstance(self.projection, OntoChannels) else describe(self.projection.granularity)
        )
        more = f", {method.bits} bits" if method.bits else ""
        return (
            f"ADMM, {pattern}, scope {method.scope}, {share}, rho {method.rho:g}{grown}, {len(self._shares)} stage(s) of "
            f"{self.stages.iterations} iterations of {self.stages.every} steps{more}"
        )


def _projection(model: nn.Module, method: Settings, example_inputs: Any) -> OntoChannels | OntoPattern:
    if method.granularity == "channel":
        coupling = coupled(model, example_inputs, ignore=method.ignore)
        return OntoChannels(model, coupling, example_inputs, round_to=method.round_to)
    targets = find_targets(model, ignore=method.ignore, include_bias=method.include_bias)
    return OntoPattern(granularity=granularity_of(method.granularity), facts=targets)
