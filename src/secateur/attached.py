"""What all runs have in common that are hooked to a user's model and optimizer."""

from typing import Any, NoReturn

from secateur.errors import BadSchedule

__all__ = ["Attached", "last_step"]


class Attached:
    """A run belongs to one model and one optimizer: neither it nor what it hooked can be copied."""

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise TypeError("a run is hooked to one model and optimizer: copy those, start again, load run.state_dict()")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a run does not pickle, its state does: save run.state_dict() beside the model's")


def last_step(end_step: int | None, total_steps: int | None, what: str) -> int:
    """The step after which ``what`` does not change any more: the one given, or 60 % of the training.

    Raises:
        BadSchedule: neither is known, or the step comes after the training.

    >>> last_step(None, 1000, "the masks")
    600
    """
    end = end_step if end_step is not None else total_steps and round(0.6 * total_steps)
    if end is None:
        raise BadSchedule(f"when are {what} fixed? pass end_step=, or total_steps= to start(): then after 60 %")
    if total_steps is not None and end > total_steps:
        raise BadSchedule(f"{what} are fixed at end_step={end}, after total_steps={total_steps}: choose it smaller")
    return end
