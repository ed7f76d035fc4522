"""Sparsity rises in a straight line."""

from dataclasses import dataclass
from typing import final

from secateur.schedules.polynomial import PolynomialDecay

__all__ = ["Linear"]


@final
@dataclass(frozen=True, kw_only=True)
class Linear:
    """Raise sparsity at a constant rate from ``initial_sparsity`` at ``begin_step`` to the final one at ``end_step``.

    >>> Linear(begin_step=0, end_step=10)(5, 0.8)
    0.4

    Raises:
        BadSchedule: the steps are out of order, or the frequency is not positive.
    """

    begin_step: int
    end_step: int
    frequency: int = 100
    initial_sparsity: float = 0.0
    regrows: bool = False

    def __post_init__(self) -> None:
        self._decay()

    def __call__(self, step: int, final: float) -> float:
        """The sparsity at ``step``."""
        return self._decay()(step, final)

    def updates_at(self, step: int) -> bool:
        """True every ``frequency`` steps from ``begin_step`` on, and at ``end_step``."""
        return self._decay().updates_at(step)

    def _decay(self) -> PolynomialDecay:
        return PolynomialDecay(
            begin_step=self.begin_step,
            end_step=self.end_step,
            frequency=self.frequency,
            initial_sparsity=self.initial_sparsity,
            power=1.0,
        )
