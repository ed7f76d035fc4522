"""Turnover: which units are in changes while a network trains; they are judged with all of them in, again and again, then fixed.

warm-up | train .. listen, renew | train (some sleep) .. listen, renew | ..  | train with fixed masks
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.coupling.channels import Channels
from secateur.errors import BadSchedule, WrongModel
from secateur.masks import Masks
from secateur.training.holding import Hold, hold
from secateur.training.listening import Ear
from secateur.training.sleeping import Sleep

__all__ = ["Calendar", "Turnover"]

Units = Mapping[str, Tensor]  # group to something for each of its units
Choice = tuple[Masks, tuple[str, ...]]  # what stays, and what came of a budget


@final
@dataclass(frozen=True, kw_only=True)
class Calendar:
    """When masks are renewed.

    Args:
        every: steps between renewals.
        batches: how many steps before a renewal are spent on scores.
        warmup: steps before the first ``every``.
        end_step: the last renewal; then masks are fixed.

    >>> calendar = Calendar(every=10, batches=3, warmup=5, end_step=28)
    >>> [step for step in range(40) if calendar.renews_at(step)], [step for step in range(1, 20) if calendar.listens_at(step)]
    ([15, 25, 28], [13, 14, 15])
    """

    every: int
    batches: int
    warmup: int
    end_step: int

    def renews_at(self, step: int) -> bool:
        """Whether masks are renewed after ``step`` steps."""
        inside = self.warmup < step < self.end_step
        return step == self.end_step or (inside and (step - self.warmup) % self.every == 0)

    def listens_at(self, step: int) -> bool:
        """Whether the step of this number, counted from 1, is spent on scores."""
        return any(self.renews_at(later) for later in range(step, step + self.batches))


class Turnover:
    """Units that leave and come back, at work.

    Args:
        model: the module in training.
        sleep: its sleeping units; none sleeps yet.
        optimizer: its optimizer.
        channels: the groups that the units belong to.
        members: the parameters that units have a part of.
        calendar: when masks are renewed.
        choose: from a score for every unit to masks.
        judge: scores with all units in; None: listen to the training.
        memory: how much of the last renewal's scores stays in the next one's.
    """

    def __init__(
        self,
        model: nn.Module,
        sleep: Sleep,
        optimizer: Any,
        *,
        channels: Channels,
        members: Iterable[str],
        calendar: Calendar,
        choose: Callable[[Units], Choice],
        judge: Callable[[], Units] | None,
        memory: float,
    ) -> None:
        self.model, self.optimizer, self.channels, self.calendar = model, optimizer, channels, calendar
        self.choose, self.judge, self.memory = choose, judge, memory
        self.steps, self.left, self.returned = 0, 0, 0
        self._counted = 0  # since this run was made, or loaded
        self.history: list[dict[str, int]] = []
        self.scores: dict[str, Tensor] = {}
        self.hold: Hold | None = None  # once masks are fixed
        self.said: tuple[str, ...] = ()
        self.masks = Masks({name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in members})
        self.sleep, self.ear = sleep, Ear(model, sleep, optimizer)
        weakref.finalize(
            self, _let_go, self.ear, self.sleep
        ).atexit = False  # a run that is dropped takes its hooks along
        self._open_ear_if_due()

    def step(self) -> None:
        """Count an optimizer step; begin to listen, renew the masks or fix them, if it is time."""
        self.steps, self._counted = self.steps + 1, self._counted + 1
        if self.hold is None:
            if self.calendar.renews_at(self.steps):
                self._renew()
            self._open_ear_if_due()

    def release(self) -> None:
        """Take all hooks off."""
        _let_go(self.ear, self.sleep)
        if self.hold is not None:
            self.hold.release()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors and plain values."""
        return {
            "steps": self.steps,
            "left": self.left,
            "returned": self.returned,
            "fixed": self.hold is not None,
            "history": [dict(entry) for entry in self.history],
            "said": list(self.said),
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "scores": {key: score.clone() for key, score in self.scores.items()},
            "sleep": self.sleep.state_dict(),
            "ear": self.ear.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off.

        Raises:
            WrongModel: the state belongs to another model.
            BadSchedule: masks are fixed already.
        """
        if self.hold is not None:
            raise BadSchedule("the masks of this run are fixed already: start a new one, and load the state into that")
        if {n: m.shape for n, m in state["masks"].items()} != {n: m.shape for n, m in self.masks.items()}:
            raise WrongModel("this state is of another model, another example or another ignore=: its masks do not fit")
        self.sleep.load_state_dict(state["sleep"])
        self.ear.load_state_dict(state["ear"])
        self.steps, self.left, self.returned = (int(state[key]) for key in ("steps", "left", "returned"))
        self.scores = {key: score.clone() for key, score in state["scores"].items()}
        self.masks, self.said = Masks(dict(state["masks"])), tuple(state["said"])
        self.history = [dict(entry) for entry in state["history"]]
        if state["fixed"]:
            self._fix()

    def _open_ear_if_due(self) -> None:
        listens = self.hold is None and self.judge is None and self.calendar.listens_at(self.steps + 1)
        if listens and not self.ear.is_open:
            self.ear.open()

    def _renew(self) -> None:
        part = self.memory
        for key, fresh in self._judged().items():
            self.scores[key] = part * self.scores[key] + (1 - part) * fresh if key in self.scores else fresh
        earlier = self.channels.alive(self.masks)
        self.masks, self.said = self.choose(self.scores)
        keep = self.channels.alive(self.masks)
        left = sum(int((earlier[key] & ~keep[key]).sum()) for key in keep)
        back = sum(int((keep[key] & ~earlier[key]).sum()) for key in keep)
        self.left, self.returned = self.left + left, self.returned + back
        units = sum(int(alive.sum()) for alive in keep.values())
        self.history.append({"step": self.steps, "left": left, "returned": back, "units": units})
        if self.steps == self.calendar.end_step:
            self._fix()
        else:
            self.sleep.fall_asleep(keep)

    def _judged(self) -> Units:
        if self.judge is None:
            return self.ear.close()
        self.sleep.wake()
        return self.judge()

    def _fix(self) -> None:
        self.sleep.wake()
        self._compare()
        self.release()
        self.hold = hold(self.model, self.masks, self.optimizer)

    def _compare(self) -> None:
        """Say so if steps were counted that nobody took; a scaler of gradients leaves out a few."""
        if self._counted > 1.1 * self.sleep.steps + 2:
            self.said = (
                *self.said,
                f"run.step() was called {self._counted} times, but the optimizer took {self.sleep.steps} steps: masks were renewed too early; "
                "call it once after every optimizer.step()",
            )


def _let_go(ear: Ear, sleep: Sleep) -> None:
    ear.release()
    sleep.release()
