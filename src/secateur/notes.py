"""What a reader of a receipt should be told: said here once, for every method."""

from dataclasses import fields, is_dataclass

from torch import nn

from secateur.masks import Masks
from secateur.protocols import Schedule
from secateur.targets import left_alone

__all__ = ["describe", "notes_on", "too_late"]


def describe(part: object) -> str:
    """A configuration object in a few words: its class and what differs from the default.

    >>> from secateur.allocations.uniform import Uniform
    >>> describe(Uniform(sparsity=0.9))
    'Uniform(sparsity=0.9)'
    """
    if part is None:
        return "no allocation"
    name = getattr(part, "name", None)
    if isinstance(name, str):
        return name
    if not is_dataclass(part):
        return type(part).__name__
    shown = [
        f"{f.name}={getattr(part, f.name)!r}" for f in fields(part) if f.init and getattr(part, f.name) != f.default
    ]
    return f"{type(part).__name__}({', '.join(shown)})" if shown else type(part).__name__


def notes_on(model: nn.Module, masks: Masks, *, stop_at: int | None = None) -> tuple[str, ...]:
    """Say which layers lost everything, which weights were left alone, and whether anything was removed at all.

    Args:
        model: pruned.
        masks: what stays.
        stop_at: where stop rules may come first, what would stay without them.
    """
    notes = []
    emptied = [name for name, mask in masks.items() if not bool(mask.any())]
    if emptied:
        notes.append(
            f"{len(emptied)} layer(s) lost every weight: {', '.join(emptied)}; nothing passes through them now. "
            "Lower the sparsity, set min_kept=, or use scope='layer'"
        )
    stopped = stop_at is not None and masks.kept > stop_at
    if masks.kept == masks.total:
        why = "the first step already goes beyond what most_rise= or floor= allows"
        notes.append(f"Nothing was removed: {why if stopped else 'the sparsity rounds to zero units in every layer'}")
    elif stopped and stop_at:
        notes.append(
            f"Stopped before the sparsity was reached: {masks.kept:,} weights stay, {stop_at:,} were asked for"
        )
    others = left_alone(model, masks)
    if others:
        more = f" and {len(others) - 6} more" if len(others) > 6 else ""
        notes.append(f"Left alone (ignored, or of a type without a rule): {', '.join(others[:6])}{more}")
    return tuple(notes)


def too_late(schedule: Schedule, steps: int, final: float | None, reached: float | None = None) -> str:
    """Say that a schedule ends after training does, and what to do."""
    at = f", where it stood at {reached:.3f} instead of {final}" if reached is not None else f", short of {final}"
    return (
        f"the schedule ends at step {schedule.end_step}, but training stops after {steps} steps{at}: "
        f"set end_step to {steps} at most, or train longer"
    )
