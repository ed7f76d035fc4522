"""What a candidate is worth: it is narrowed for real, run, and compared as the discriminator sees it (Shu et al. 2019, eq. 4 to 6).

    L_Dis = 1/m sum | D(G(x)) - D(G'(x)) |^2                  the discriminator's view of the dense and the narrowed generator's output
    L_cyc = 1/m sum | F'(G'(x)) - x |^p                                               F': the best generator of the other population

Without a discriminator outputs themselves are compared. Candidates may be tuned first, a few steps towards the dense output: the
authors' code trains every candidate for ten epochs before it scores it. An evaluation depends on nothing but its `Job`.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.cutting import cut_
from secateur.graphs import copied
from secateur.structure import Structure

__all__ = ["Arena", "Job", "Terms", "Tuning"]

_REMEMBERED = 4


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a candidate is trained before it is scored, towards the dense generator's output (mean absolute difference, Adam).

    Args:
        steps: 0 leaves it out.
        batch: inputs in a step.
        lr: learning rate.
    """

    steps: int = 0
    batch: int = 4
    lr: float = 1e-3


class Job(NamedTuple):
    """One evaluation.

    Args:
        side: which generator is narrowed, 0 or 1.
        genome: a name for what stays of it.
        structure: to what it is narrowed; None: not at all.
        other: a name for what stays of the other generator.
        other_structure: to what that is narrowed.
    """

    side: int
    genome: str
    structure: Structure | None
    other: str = ""
    other_structure: Structure | None = None


class Terms(NamedTuple):
    """What an evaluation found: the discriminator-aware loss and the cycle loss."""

    aware: float
    cycle: float = 0.0


@dataclass(eq=False)
class Arena:
    """Everything that evaluations need; it is sent to each worker once.

    Args:
        generators: one, or two that are each other's inverse; dense.
        judges: for each the discriminator of what it makes, or None.
        inputs: for each what it is scored on.
        practice: for each what candidates are tuned on.
        tuning: how.
        power: p of the cycle loss, 1 or 2.
        chunk: how many inputs go through the networks at a time.
    """

    generators: tuple[nn.Module, ...]
    judges: tuple[nn.Module | None, ...]
    inputs: tuple[Tensor, ...]
    practice: tuple[Tensor, ...]
    tuning: Tuning = field(default_factory=Tuning)
    power: int = 2
    chunk: int = 32
    _views: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)
    _lessons: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _made: "OrderedDict[tuple[int, str], nn.Module]" = field(default_factory=OrderedDict, repr=False)

    def __call__(self, job: Job) -> Terms:
        """Score a candidate."""
        model = self._make(job.side, job.structure)
        inputs = self.inputs[job.side]
        back = self._partner(1 - job.side, job.other, job.other_structure) if len(self.generators) > 1 else None
        aware, cycle = 0.0, 0.0
        with torch.no_grad():
            for x, view in zip(torch.split(inputs, self.chunk), self._dense_views(job.side), strict=True):
                made = model(x)
                aware += float((self._view(job.side, made) - view).square().mean()) * len(x)
                if back is not None:
                    cycle += float((back(made) - x).abs().pow(self.power).mean()) * len(x)
        return Terms(aware / len(inputs), cycle / len(inputs))

    def _partner(self, side: int, genome: str, structure: Structure | None) -> nn.Module:
        """The best of the other population, remembered, since it is asked for again and again."""
        key = (side, genome)
        if key not in self._made:
            self._made[key] = self._make(side, structure)
            while len(self._made) > _REMEMBERED:
                self._made.popitem(last=False)
        return self._made[key]

    def _make(self, side: int, structure: Structure | None) -> nn.Module:
        """The narrowed generator, tuned."""
        dense = self.generators[side]
        if structure is None or not structure.kept:
            return dense.eval()
        model = copied(dense)
        cut_(model, structure)
        return self._tuned(model, side).eval()

    def _tuned(self, model: nn.Module, side: int) -> nn.Module:
        tuning, inputs = self.tuning, self.practice[side]
        if not tuning.steps:
            return model
        optimizer = torch.optim.Adam(model.requires_grad_(True).parameters(), lr=tuning.lr, betas=(0.5, 0.999))
        model.train()
        with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []), torch.enable_grad():
            torch.manual_seed(0)  # for dropout
            for step in range(tuning.steps):
                x, goal = self._lesson(side, step)
                optimizer.zero_grad()
                (model(x) - goal).abs().mean().backward()
                optimizer.step()
        return model

    def _lesson(self, side: int, step: int) -> tuple[Tensor, Tensor]:
        """Inputs of a step, and what the dense generator makes of them."""
        if (side, step) not in self._lessons:
            inputs, batch = self.practice[side], self.tuning.batch
            x = inputs[torch.arange(step * batch, (step + 1) * batch, device=inputs.device) % len(inputs)]
            with torch.no_grad():
                self._lessons[side, step] = (x, self.generators[side].eval()(x))
        return self._lessons[side, step]

    def _dense_views(self, side: int) -> list[Tensor]:
        if side not in self._views:
            with torch.no_grad():
                dense = self.generators[side].eval()
                self._views[side] = [self._view(side, dense(x)) for x in torch.split(self.inputs[side], self.chunk)]
        return self._views[side]

    def _view(self, side: int, made: Tensor) -> Tensor:
        judge = self.judges[side]
        return made if judge is None else judge(made)
