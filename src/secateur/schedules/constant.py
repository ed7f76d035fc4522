"""The final sparsity at once, then training goes on."""

from dataclasses import dataclass
from typing import final

from secateur.errors import BadSchedule

__all__ = ["Constant"]


@final
@dataclass(frozen=True, kw_only=True)
class Constant:
    """Prune to the final sparsity at ``begin_step``; masks stay as they are from then on.

    Args:
        begin_step: the optimizer step, counted from 0.
        end_step: keep choosing masks anew until this step (default: choose once).
        frequency: how often they are chosen until then.

    Raises:
        BadSchedule: the steps are out of order, or the frequency is not positive.
    """

    begin_step: int = 0
    end_step: int = -1
    frequency: int = 100
    regrows: bool = False

    def __post_init__(self) -> None:
        if self.end_step == -1:
            object.__setattr__(self, "end_step", self.begin_step)
        if not 0 <= self.begin_step <= self.end_step or self.frequency < 1:
            raise BadSchedule(
                f"begin_step={self.begin_step}, end_step={self.end_step}, frequency={self.frequency}: "
                "needs 0 <= begin_step <= end_step and frequency >= 1"
            )

    def __call__(self, step: int, final: float) -> float:
        """``final`` from ``begin_step`` on."""
        return final if step >= self.begin_step else 0.0

    def updates_at(self, step: int) -> bool:
        """True at ``begin_step``, then every ``frequency`` steps until ``end_step``."""
        inside = self.begin_step <= step <= self.end_step
        return inside and ((step - self.begin_step) % self.frequency == 0 or step == self.end_step)
