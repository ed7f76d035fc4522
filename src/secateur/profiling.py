"""Stub, replaced next: what a model costs."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from secateur.report import Profile, Report
from secateur.task import Task

__all__ = ["compare", "profile"]


def profile(model: nn.Module, example_inputs: Any = None, *, task: Task | None = None) -> Profile:
    """Measure a model."""
    ps = list(model.parameters())
    score = task.evaluate(model) if task and task.evaluate else None
    return Profile(
        model=type(model).__name__,
        params=sum(p.numel() for p in ps),
        nonzeros=sum(int(p.count_nonzero()) for p in ps),
        score=score,
    )


def compare(
    before: nn.Module | Profile,
    after: nn.Module | Profile,
    example_inputs: Any = None,
    *,
    task: Task | None = None,
    method: str = "",
    notes: Iterable[str] = (),
) -> Report:
    """Compare two models."""
    a = before if isinstance(before, Profile) else profile(before, example_inputs, task=task)
    b = after if isinstance(after, Profile) else profile(after, example_inputs, task=task)
    return Report(before=a, after=b, method=method, notes=tuple(notes))
