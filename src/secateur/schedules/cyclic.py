"""Prune, let go, prune again: each cycle ramps up from ``initial_sparsity``, so weights cut too early can come back.

In the spirit of AC/DC (Peste et al. 2021), with a ramp in each cycle. At the start of a cycle masks open to
``initial_sparsity`` and the freed weights train from zero; the last cycle ends at the final sparsity and stays there.
"""

from dataclasses import dataclass
from typing import final

from secateur.counting import check_sparsity
from secateur.errors import BadSchedule

__all__ = ["Cyclic"]


@final
@dataclass(frozen=True, kw_only=True)
class Cyclic:
    """``cycles`` ramps of equal length between ``begin_step`` and ``end_step``.

    Args:
        begin_step, end_step: optimizer steps, counted from 0.
        cycles: how many ramps.
        frequency: masks are renewed every so many steps within a ramp.
        initial_sparsity: where each ramp starts.
        open_fraction: the part of each cycle that stays at ``initial_sparsity`` before the ramp.
        power: shape of the ramp, as in `PolynomialDecay`.

    >>> schedule = Cyclic(begin_step=0, end_step=20, cycles=2, frequency=5, open_fraction=0.0, power=1)
    >>> [round(schedule(step, 0.8), 2) for step in (0, 5, 9, 10, 15, 20)]
    [0.0, 0.4, 0.72, 0.0, 0.4, 0.8]

    Raises:
        BadSchedule: a cycle would be shorter than a step, or a number is out of range.
    """

    begin_step: int
    end_step: int
    cycles: int = 4
    frequency: int = 100
    initial_sparsity: float = 0.0
    open_fraction: float = 0.3
    power: float = 3.0
    regrows: bool = True

    def __post_init__(self) -> None:
        check_sparsity(self.initial_sparsity, "initial_sparsity")
        check_sparsity(self.open_fraction, "open_fraction")
        ordered = self.begin_step >= 0 and self.begin_step + self.cycles <= self.end_step
        if not ordered or self.cycles < 1 or self.frequency < 1 or self.power <= 0:
            raise BadSchedule(
                f"begin_step={self.begin_step}, end_step={self.end_step}, cycles={self.cycles}, frequency={self.frequency}: "
                "needs 0 <= begin_step, at least one step per cycle, frequency >= 1 and power > 0"
            )

    def __call__(self, step: int, final: float) -> float:
        """The sparsity at ``step``."""
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return final
        phase = self._phase(step)
        ramp = max(0.0, (phase - self.open_fraction) / (1 - self.open_fraction))
        return final + (self.initial_sparsity - final) * float((1 - ramp) ** self.power)

    def updates_at(self, step: int) -> bool:
        """True at the start of each cycle, every ``frequency`` steps, and at ``end_step``."""
        if not self.begin_step <= step <= self.end_step:
            return False
        starts = step > self.begin_step and self._phase(step) < self._phase(step - 1)
        return starts or (step - self.begin_step) % self.frequency == 0 or step == self.end_step

    def _phase(self, step: int) -> float:
        return ((step - self.begin_step) * self.cycles / (self.end_step - self.begin_step)) % 1.0
