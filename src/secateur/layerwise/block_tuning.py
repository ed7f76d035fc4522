"""A block's survivors solved for together: what it gives on the pruned network's inputs is brought near to what the dense block gave.

    min over surviving weights, biases and norms    E || B'(x') - B(x) ||^2

Layer-wise solves cannot see past a layer; this is their joint form, not linear any more, so it is done by gradients (EBFT; Guo et al.
2024). No labels: the dense block is the teacher. Kept only where it did lower the error.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from secateur.examples import leaving_no_trace
from secateur.gradients import evaluating
from secateur.layerwise.chains import first_of
from secateur.layerwise.staging import Stage
from secateur.layerwise.streaming import Stream

__all__ = ["Tuning", "tune_"]


@final
@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How survivors of a block are tuned.

    Args:
        epochs: passes over the calibration batches.
        lr: Adam's rate at the start; it falls to a tenth as a cosine.
        seed: the order of batches.
        left_alone: parameters that are not tuned; those that another block shares are not either.
    """

    epochs: int = 4
    lr: float = 3e-4
    seed: int = 0
    left_alone: tuple[str, ...] = ()


def tune_(stage: Stage, now: Stream, dense: Stream, masks: Mapping[str, Tensor], tuning: Tuning) -> tuple[float, float]:
    """Tune the block of ``stage`` in place.

    Returns:
        The error before and after, relative to the variance of what the dense block gives.
    """
    block = now.model.get_submodule(stage.block)
    goals = [_given(dense, stage, place) for place in range(len(dense.held))]
    spread = sum(float(goal.var(unbiased=False)) for goal in goals) / len(goals)
    before = _error(now, stage, goals) / max(spread, 1e-30)
    saved = {name: p.detach().clone() for name, p in block.named_parameters()}
    held = {p: masks[name] for name, p in now.model.named_parameters() if name in masks}
    _descend(block, stage, now, goals, held, tuning=tuning, spread=spread)
    after = _error(now, stage, goals) / max(spread, 1e-30)
    if not after < before:
        with torch.no_grad():
            for name, parameter in block.named_parameters():
                parameter.copy_(saved[name])
        return before, before
    return before, after


def _descend(
    block: nn.Module,
    stage: Stage,
    now: Stream,
    goals: list[Tensor],
    held: Mapping[nn.Parameter, Tensor],
    *,
    tuning: Tuning,
    spread: float,
) -> None:
    elsewhere = {id(p) for path in now.chain if path != stage.block for p in now.model.get_submodule(path).parameters()}
    own = block.named_parameters(prefix=stage.block)
    parameters = [p for name, p in own if name not in tuning.left_alone and id(p) not in elsewhere]
    if not parameters:
        return
    generator = torch.Generator().manual_seed(tuning.seed)
    total, step = tuning.epochs * len(goals), 0
    with _training_only(parameters, now.model):
        optimizer = torch.optim.Adam(parameters, lr=tuning.lr, betas=(0.9, 0.95))
        for _ in range(tuning.epochs):
            for place in torch.randperm(len(goals), generator=generator).tolist():
                rate = tuning.lr * (0.55 + 0.45 * math.cos(math.pi * step / total))
                for group in optimizer.param_groups:
                    group["lr"] = rate * min(1.0, (step + 1) / 8)
                with evaluating(block), torch.enable_grad():
                    out = first_of(now.run(stage, place))
                    assert out is not None
                    loss = (out - goals[place]).square().mean() / max(spread, 1e-30)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for p in parameters:
                        if p in held:
                            p.masked_fill_(~held[p], 0)
                step += 1


@contextmanager
def _training_only(parameters: Sequence[nn.Parameter], model: nn.Module) -> Iterator[None]:
    """Gradients for these parameters and no others; afterwards all is as it was."""
    asked = {p: p.requires_grad for p in [*model.parameters(), *parameters]}
    try:
        for p in asked:
            p.requires_grad_(False)
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, asks in asked.items():
            p.requires_grad_(asks)
        for p in parameters:
            p.grad = None


def _given(stream: Stream, stage: Stage, place: int) -> Tensor:
    with leaving_no_trace(stream.model):
        out = first_of(stream.run(stage, place))
    assert out is not None
    return out


def _error(now: Stream, stage: Stage, goals: list[Tensor]) -> float:
    return sum(float((_given(now, stage, place) - goal).square().mean()) for place, goal in enumerate(goals)) / len(
        goals
    )
