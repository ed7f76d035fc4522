"""Network slimming: batch-norm scales are driven towards zero in training, then the channels with the smallest leave (Liu et al. 2017).

    L = sum over batches of loss  +  lambda * sum |gamma|         over the scales whose channels may leave           (eq. 1)

`SlimmingRun.penalty` is the second term; add it to the loss. Its gradient is the subgradient lambda * sign(gamma), 0 at 0: under SGD
that is to the bit what the authors' code adds to the gradient. Under Adam and its kin the objective is the same, but that gradient
passes through their scaling like every other: once the loss pulls less than lambda, a scale moves by the learning rate per step,
however small lambda is. The strengths of the paper (1e-4, 1e-5) are for SGD. Weight decay on the scales pulls as well; the receipt of
a run with ``strength=0`` is the control.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.coupling import Coupling
from secateur.criteria.bn_scale import BnScale, scales_of
from secateur.errors import BadSchedule, NothingToPrune, WrongModel
from secateur.limits import check_units, share_of
from secateur.masks import Masks
from secateur.narrowing.thinning import choose, coupled, members_of, thin
from secateur.notes import describe, too_late
from secateur.profiling.profile import profile
from secateur.protocols import Schedule
from secateur.report import Pruned
from secateur.targets import Ignore
from secateur.task import Task
from secateur.training.attached import Attached

__all__ = ["Slimming", "SlimmingRun"]


@final
@dataclass(frozen=True, kw_only=True)
class Slimming:
    """Train with a penalty on batch-norm scales, then take the channels with the smallest out.

    Args:
        sparsity: the fraction of the units removed at the end, or
        budget: what the result may cost, e.g. ``"macs:50%"``; see `secateur.prune`.
        strength: lambda, the weight of the penalty.
        schedule: how the strength grows, from 0 to ``strength``; None: all of it from the first step on.
        scope: "global" (one threshold for all scales, as in the paper), "layer", ...
        min_kept: units that stay in every group at least.
        round_to: keep widths at multiples of this.
        ignore: layers whose channels stay; their scales are not penalised.
    """

    sparsity: float | None = None
    budget: str | None = None
    strength: float = 1e-4
    schedule: Schedule | None = None
    scope: str = "global"
    min_kept: int = 1
    round_to: int = 1
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        check_units(round_to=self.round_to, min_kept=self.min_kept)
        if not self.strength >= 0:
            raise BadSchedule(f"strength={self.strength} must be 0 (no penalty, the control) or more, e.g. 1e-4")

    def start(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        example_inputs: Any = None,
        total_steps: int | None = None,
        task: Task | None = None,
    ) -> "SlimmingRun":
        """Begin on ``model``, in place.

        Args:
            model: the module in training.
            optimizer: its optimizer; nothing is hooked to it.
            example_inputs: the model is run on them once, to see what is coupled.
            total_steps: how many optimizer steps the training will take, if known: a schedule that would end later is refused.
            task: ``evaluate`` for the receipt.

        Raises:
            NeedsTask: no ``example_inputs``.
            NothingToPrune: no channel that may leave goes through a batch norm with a scale.
            WrongModel: ``optimizer`` does not train the scales.
            BadSchedule, BadSparsity, OverBudget, UnknownName: what is asked for cannot be had.
        """
        if total_steps is not None and self.schedule is not None and self.schedule.end_step > total_steps:
            raise BadSchedule(too_late(self.schedule, total_steps, self.strength))
        return SlimmingRun(self, model, optimizer, example_inputs=example_inputs, task=task)


class SlimmingRun(Attached):
    """A `Slimming` at work."""

    def __init__(
        self, method: Slimming, model: nn.Module, optimizer: Any, *, example_inputs: Any, task: Task | None
    ) -> None:
        self.method, self.model, self.task, self.example_inputs = method, model, task, example_inputs
        self._share = share_of(method.sparsity, method.budget, method.scope, method.min_kept)
        self._coupling = coupled(model, example_inputs, ignore=method.ignore)
        self._scales = _penalised(model, self._coupling)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(gamma) in trained for gamma, _ in self._scales.values()):
            raise WrongModel("the optimizer trains none of the batch-norm scales: build it from model.parameters()")
        self._choose()  # a rehearsal: what cannot work is refused now, not hours into training
        self._before = profile(model, example_inputs, task=task)
        self.steps = 0

    @property
    def strength(self) -> float:
        """The weight of the penalty now."""
        schedule, final = self.method.schedule, self.method.strength
        return final if schedule is None else schedule(self.steps, final)

    def step(self) -> None:
        """Count an optimizer step."""
        self.steps += 1

    def penalty(self) -> Tensor:
        """The strength times the sum of ``|gamma|``; add it to the loss."""
        gammas = [gamma[index.to(gamma.device)].abs().sum() for gamma, index in self._scales.values()]
        total = sum((one.to(gammas[0].device) for one in gammas[1:]), gammas[0])
        return self.strength * total

    def finish(self) -> Pruned:
        """Mask the channels with the smallest scales in the model, and return a narrowed copy.

        Raises:
            BadSchedule: training stopped before the schedule did.
            OverBudget, NarrowingFailed: see the parts.
        """
        if self.method.schedule is not None and self.steps < self.method.schedule.end_step:
            raise BadSchedule(too_late(self.method.schedule, self.steps, self.method.strength, reached=self.strength))
        scales = torch.cat(
            [gamma.detach()[index.to(gamma.device)].cpu().abs() for gamma, index in self._scales.values()]
        )
        masks, said = self._choose()
        masks.apply_(self.model)
        return thin(
            self.model,
            masks,
            self._coupling,
            example_inputs=self.example_inputs,
            before=self._before,
            task=self.task,
            method=self._said(),
            settings={"strength": self.method.strength, "steps": self.steps},
            notes=(*said, _spread(scales)),
        )

    def state_dict(self) -> dict[str, Any]:
        """The steps so far: everything else is in the weights."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off, beside the model's and the optimizer's."""
        self.steps = int(state["steps"])

    def _choose(self) -> tuple[Masks, tuple[str, ...]]:
        members = members_of(self._coupling, self.model)
        scores = replace(BnScale()(self.model, members), facts=members)
        return choose(
            self.model,
            self._coupling,
            scores,
            self._share,
            example_inputs=self.example_inputs,
            round_to=self.method.round_to,
        )

    def _said(self) -> str:
        method = self.method
        grown = "" if method.schedule is None else f", {describe(method.schedule)}"
        share = method.budget or f"sparsity {method.sparsity:g}"
        return f"slimming, strength {method.strength:g}{grown}, scope {method.scope}, {share}, channels narrowed"


def _penalised(model: nn.Module, coupling: Coupling) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """The scales whose channels may leave, with the indices of those channels."""
    scales, found = scales_of(model), dict[str, list[Tensor]]()
    for group in coupling.groups():
        for (name, _), index in group.places.items():
            if name in scales:
                found.setdefault(name, []).append(index.reshape(-1))
    if not found:
        raise NothingToPrune(
            f"no channel of {type(model).__name__} that may leave goes through a batch norm with a scale, and slimming judges by "
            "those: use sc.methods.GDP, or sc.prune(..., granularity='channel') with another criterion"
        )
    return {name: (scales[name], torch.cat(indices).sort().values) for name, indices in found.items()}


def _spread(scales: Tensor) -> str:
    small = int((scales < scales.max() / 100).sum())
    return (
        f"Of {len(scales)} batch-norm scales {small} were below a hundredth of the largest ({float(scales.max()):.3g}) when channels "
        "were chosen; where hardly any are, the penalty was too weak or too short to tell channels apart"
    )
