"""What a step from one network to another did to the loss whose curvature predicted it, on a task's batches.

    "squared"                    1/2 || f'(x) - f(x) ||^2
    "cross_entropy", "sampled"   KL( p(x) || p'(x) ), summed over the places of an output
    "empirical"                  the rise of the task's loss

all as a mean over samples. Batches are gone through once, both networks on each, so that a loader may shuffle or augment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from secateur.activations import fresh
from secateur.curvatures.class_axis import by_class, tensor_of
from secateur.errors import BadSparsity
from secateur.examples import leaving_no_trace
from secateur.gates import examples_in
from secateur.task import Task

__all__ = ["LABELS", "NOTHING", "Outcome", "check_floor", "judged", "outcome_of"]

LABELS = {
    "squared": "no labels",
    "cross_entropy": "no labels",
    "sampled": "labels drawn from the model",
    "empirical": "the labels of the task",
}
_OF = {
    "squared": "half the squared change of the outputs",
    "cross_entropy": "cross-entropy against what it gave before",
    "sampled": "cross-entropy against what it gave before",
    "empirical": "Task.loss",
}
_FACTOR, _NOISE = 3.0, 1e-5


@final
@dataclass(frozen=True)
class Outcome:
    """A measured rise.

    Args:
        rise: the mean over samples.
        size: how large what it is measured on is: half the mean square of the outputs, the loss, or 1 where it is in nats.
        of: what that is, in words.
    """

    rise: float
    size: float
    of: str


NOTHING = Outcome(0.0, 0.0, "nothing was done")


def outcome_of(
    before: nn.Module, after: nn.Module, task: Task, kind: str, *, who: str, classes: int | None = None
) -> Outcome:
    """Measure a step; ``kind``, ``who`` and ``classes`` as in `secateur.curvatures.jacobians.curvature_rows`."""
    total, size, samples = 0.0, 0.0, 0
    for batch in task.each_batch(who):
        with leaving_no_trace(before), leaving_no_trace(after):
            if kind == "empirical":
                loss, count = task.needs_loss(who), examples_in(batch)
                old, new = (float(loss(model, fresh(batch))) for model in (before, after))
                total, size = total + count * (new - old), size + count * abs(old)
            else:
                x = batch[0] if isinstance(batch, tuple | list) else batch
                count = len(x)
                old_out, new_out = (tensor_of(model(x), kind).double() for model in (before, after))
                rise, own = _apart(old_out, new_out, count, kind, classes)
                total, size = total + rise, size + own
        samples += count
    return Outcome(total / samples, size / samples, _OF[kind])


def check_floor(model: nn.Module, task: Task, floor: float) -> None:
    """Refuse a floor that the network is below already.

    Raises:
        BadSparsity: it is.
        NeedsTask: the task has no quality.
    """
    with leaving_no_trace(model):
        quality = float(task.needs_evaluate("floor=")(model))
    if quality < floor:
        raise BadSparsity(
            f"floor={floor:g} is above the quality that the network has now, {quality:g}: nothing could leave; choose it lower"
        )


def judged(
    stages: Sequence[Mapping[str, float]], found: Outcome, *, steps_only: bool = False
) -> tuple[dict[str, Any], str]:
    """What was predicted in all beside what is measured, for a receipt, and a sentence where the measured is clearly more and no rounding.

    Args:
        stages: with "predicted" and "measured" each.
        found: from the first network to the last.
        steps_only: whether only the stages' own steps were predicted, and other things happened in between.

    >>> judged([{"predicted": 0.0025, "measured": 8.8}], Outcome(8.8, 1.0, "Task.loss"))[1]
    'The loss was predicted to rise by 0.0025 and rose by 8.8 on the calibration batches (Task.loss)'
    """
    predicted = sum(stage["predicted"] for stage in stages)
    rise = sum(stage["measured"] for stage in stages) if steps_only else found.rise
    settings = {"stages": list(stages), "predicted": predicted, "measured": rise}
    if rise <= _FACTOR * predicted + _NOISE * found.size:
        return settings, ""
    return settings, (
        f"The loss was predicted to rise by {predicted:.3g} and rose by {rise:.3g} on the calibration batches ({found.of})"
    )


def _apart(old: Tensor, new: Tensor, count: int, kind: str, classes: int | None) -> tuple[float, float]:
    """The sum over a batch, and its size."""
    if kind == "squared":
        return float((new - old).square().sum()) / 2, float(old.square().sum()) / 2
    one, other = (by_class(out, count, classes, kind).log_softmax(2) for out in (old, new))
    return float((one.exp() * (one - other)).sum()), float(count)
