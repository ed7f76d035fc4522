"""Polynomial decay of the density (Zhu & Gupta 2017, eq. 1; arguments as in the TensorFlow toolkit).

    s_t = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_1 - t_0)) ** power         for t_0 <= t <= t_1

Fast at first, when much is redundant, slow towards the end. ``power=1`` is linear. The last step always updates the masks, also
when ``end_step - begin_step`` is no multiple of ``frequency``, so the final sparsity is reached (the toolkit can miss it).
"""

from dataclasses import dataclass
from typing import final

from secateur.counting import check_sparsity
from secateur.errors import BadSchedule

__all__ = ["PolynomialDecay"]


@final
@dataclass(frozen=True, kw_only=True)
class PolynomialDecay:
    """Raise sparsity from ``initial_sparsity`` at ``begin_step`` to the method's final one at ``end_step``.

    Args:
        begin_step, end_step: optimizer steps, counted from 0.
        frequency: masks are renewed every so many steps.
        initial_sparsity: the fraction removed at ``begin_step``.
        power: 3 is the paper's cubic.

    >>> schedule = PolynomialDecay(begin_step=0, end_step=10, frequency=5)
    >>> [round(schedule(step, 0.8), 3) for step in (0, 5, 10, 99)]
    [0.0, 0.7, 0.8, 0.8]

    Raises:
        BadSchedule: the steps are out of order, or the frequency is not positive.
    """

    begin_step: int
    end_step: int
    frequency: int = 100
    initial_sparsity: float = 0.0
    power: float = 3.0
    regrows: bool = False

    def __post_init__(self) -> None:
        check_sparsity(self.initial_sparsity, "initial_sparsity")
        if not 0 <= self.begin_step < self.end_step or self.frequency < 1 or self.power <= 0:
            raise BadSchedule(
                f"begin_step={self.begin_step}, end_step={self.end_step}, frequency={self.frequency}, power={self.power:g}: "
                "needs 0 <= begin_step < end_step, frequency >= 1 and power > 0"
            )

    def __call__(self, step: int, final: float) -> float:
        """The sparsity at ``step``; 0 before ``begin_step``.

        Raises:
            BadSchedule: ``final`` is below ``initial_sparsity``, but masks only shrink.
        """
        if final < self.initial_sparsity:
            raise BadSchedule(
                f"initial_sparsity={self.initial_sparsity:g} is above the final sparsity {final:g}, and what is removed does not "
                "come back; lower initial_sparsity"
            )
        if step < self.begin_step:
            return 0.0
        progress = min((step - self.begin_step) / (self.end_step - self.begin_step), 1.0)
        return final + (self.initial_sparsity - final) * float((1 - progress) ** self.power)

    def updates_at(self, step: int) -> bool:
        """True every ``frequency`` steps from ``begin_step`` on, and at ``end_step``."""
        inside = self.begin_step <= step <= self.end_step
        return inside and ((step - self.begin_step) % self.frequency == 0 or step == self.end_step)
