"""ADMM: pruning as a constrained optimisation, in the user's own training loop (Zhang et al. 2018, "A systematic DNN weight pruning framework using ADMM").

    min f(W)  subject to  W in S                S: what may stay: a sparsity, N:M, blocks, channels, quantisation levels
    W: some steps on f(W) + rho/2 |W - Z + U|^2;    Z <- Proj_S(W + U);    U <- U + W - Z           (their eq. 5, 7, 4)

After ``iterations`` of that W is projected itself, what left is held at zero, the optimizer starts afresh, and what stays is trained
without the penalty ("masked retraining"). `stages` repeats all of it at rising sparsities (Ye et al. 2018, "Progressive weight pruning").
With ``scope="global"`` the projection itself finds out how much leaves which layer: nothing is typed by hand.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, final

from torch import Tensor, nn

from secateur.alternating.relaying import Relay
from secateur.alternating.stages import Stages
from secateur.errors import BadSchedule, BadSparsity
from secateur.masks import Masks
from secateur.protocols import Granularity
from secateur.quantising import check_bits
from secateur.report import Pruned
from secateur.targets import Ignore
from secateur.task import Task
from secateur.training.attached import Attached

__all__ = ["ADMM", "ADMMRun"]


@final
@dataclass(frozen=True, kw_only=True)
class ADMM:
    """Pull the weights towards a constraint while they train, then project and retrain.

    Args:
        sparsity: the fraction removed at the end. With an N:M granularity leave it out.
        budget: instead, with ``granularity="channel"``: what the narrowed network may cost, e.g. ``"macs:50%"``.
        granularity: "unstructured", "2:4", "block:4x1", "filter", ..., or "channel": coupled channels, which leave for real.
        scope: "global" (the projection shares the sparsity out), "layer", "erk", "lamp".
        overrides: sparsities of single layers; the rest follows ``scope``.
        min_kept: units that stay in every layer at least.
        rho: the weight of the penalty. Too small, and nothing is pulled: `ADMMRun.history` and the receipt say how far W was from Z.
        growth: what rho is multiplied with after every iteration; 1 keeps it as it is, as in the paper.
        every: optimizer steps in one iteration; None: so that all iterations take 60 % of ``total_steps``, or 500.
        iterations: Z-steps before the cut.
        stages: lower sparsities to go through first, e.g. ``(0.9, 0.97)``.
        retrain: steps of masked retraining between two stages; None: as many as an iteration has, times half of the iterations.
        bits: also pull what stays to ``2**bits - 1`` equally spaced levels per tensor; `ADMMRun.finish` puts it there.
        fresh_optimizer: empty the optimizer's state (momentum, moments) at every cut.
        distill: how much the dense model counts as a teacher; its term is part of ``penalty()``.
        temperature: of the teacher; None for regression.
        round_to: widths in multiples of this, with channels.
        ignore, include_bias: see `secateur.prune`.
    """

    sparsity: float | None = None
    budget: str | None = None
    granularity: str | Granularity = "unstructured"
    scope: str = "global"
    overrides: Mapping[str, float] = field(default_factory=dict, hash=False)
    min_kept: int = 0
    rho: float = 1e-3
    growth: float = 1.15
    every: int | None = None
    iterations: int = 30
    stages: tuple[float, ...] = ()
    retrain: int | None = None
    bits: int | None = None
    fresh_optimizer: bool = True
    distill: float = 0.0
    temperature: float | None = 4.0
    round_to: int = 1
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    include_bias: bool = False

    def __post_init__(self) -> None:
        if not self.rho > 0 or not self.growth >= 1:
            raise BadSchedule(f"rho={self.rho} must be above 0 and growth={self.growth} 1 or more, e.g. 1e-3 and 1.2")
        if self.iterations < 1 or (self.every is not None and self.every < 1) or (self.retrain or 0) < 0:
            raise BadSchedule(
                f"iterations={self.iterations} and every={self.every} must be 1 or more, retrain={self.retrain} 0 or more"
            )
        rising = (*self.stages, 1.0 if self.sparsity is None else self.sparsity)
        if self.stages and (self.sparsity is None or any(a >= b for a, b in pairwise(rising))):
            raise BadSparsity(
                f"stages={self.stages} are lower sparsities on the way to sparsity={self.sparsity}: give it, and let them rise"
            )
        check_bits(self.bits)

    def start(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        total_steps: int | None = None,
        task: Task | None = None,
        example_inputs: Any = None,
        copies: Iterable[nn.Module] = (),
    ) -> "ADMMRun":
        """Begin on ``model`` (not on its ``DistributedDataParallel``), in place.

        Args:
            model: the module in training; train it first, or at least some epochs.
            optimizer: its optimizer.
            total_steps: how many steps the training will take, if known.
            task: ``evaluate`` for the receipt.
            example_inputs: for MACs and latency in the receipt, and to find coupled channels.
            copies: averaged copies (EMA) to keep sparse as well, once there are masks.

        Raises:
            BadSchedule: the iterations do not fit into ``total_steps``.
            BadSparsity, UnknownName, NothingToPrune, NeedsTask, OverBudget: what is asked for cannot be had.
        """
        return ADMMRun(self, model, optimizer, total_steps, task=task, example_inputs=example_inputs, copies=copies)


class ADMMRun(Attached):
    """An `ADMM` at work."""

    def __init__(
        self,
        method: ADMM,
        model: nn.Module,
        optimizer: Any,
        total_steps: int | None,
        *,
        task: Task | None,
        example_inputs: Any,
        copies: Iterable[nn.Module],
    ) -> None:
        self.method, self.model = method, model
        stages = Stages.of(
            every=method.every,
            iterations=method.iterations,
            retrain=method.retrain,
            sparsities=(*method.stages, method.sparsity),
            total_steps=total_steps,
        )
        self._relay = Relay(
            model, optimizer, method, stages, task=task, example_inputs=example_inputs, copies=tuple(copies)
        )

    @property
    def masks(self) -> Masks:
        """What is held, or would be kept if W were projected now."""
        return self._relay.masks

    @property
    def retraining(self) -> bool:
        """Whether the last cut is done: what stays is trained without a penalty, and the zeros are held."""
        return self._relay.over

    @property
    def steps(self) -> int:
        """How many optimizer steps were counted."""
        return self._relay.steps

    @property
    def history(self) -> list[dict[str, float]]:
        """For every iteration so far: step, sparsity, rho, and the primal and dual residual, both relative to ``|W|``."""
        return self._relay.history

    def step(self) -> None:
        """Count an optimizer step; project, cut, or go on to the next stage, if it is time."""
        self._relay.step()

    def penalty(self) -> Tensor:
        """``rho/2 |W - Z + U|^2``, and the teacher's term; add it to the loss, after the forward pass."""
        return self._relay.penalty()

    def finish(self) -> Pruned:
        """Project what is not projected yet, let go of the optimizer and measure. The constraint holds exactly.

        With ``granularity="channel"`` a narrowed copy comes back, and the model itself is masked.
        """
        return self._relay.finish()

    def release(self) -> None:
        """Take all hooks off without projecting or measuring."""
        self._relay.release()

    def state_dict(self) -> dict[str, Any]:
        """Steps, Z, U, masks and residuals: fit for ``torch.load(weights_only=True)``."""
        return self._relay.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off. Start the run, load the model, load the optimizer, then this, in that order."""
        self._relay.load_state_dict(state)
