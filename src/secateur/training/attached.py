"""What all runs have in common that are hooked to a user's model and optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from secateur.errors import BadSchedule

__all__ = ["Attached", "closure_in", "last_step", "with_closure"]


class Attached:
    """A run belongs to one model and one optimizer: neither it nor what it hooked can be copied."""

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise TypeError("a run is hooked to one model and optimizer: copy those, start again, load run.state_dict()")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a run does not pickle, its state does: save run.state_dict() beside the model's")


def closure_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
    """The closure that ``optimizer.step`` was given, from what a hook before the step sees."""
    found = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return found if callable(found) else None


def with_closure(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], closure: Callable[[], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the hook returns for ``closure`` to be called instead."""
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), dict(kwargs)


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
