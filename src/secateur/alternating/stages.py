"""What ADMM in training is set to, and which step does what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

from secateur.errors import BadSchedule
from secateur.protocols import Granularity

__all__ = ["Settings", "Stages"]


class Settings(Protocol):
    """What a training method with a splitting is set to; see `secateur.methods.admm.ADMM` for what each means."""

    @property
    def sparsity(self) -> float | None: ...  # noqa: D102
    @property
    def budget(self) -> str | None: ...  # noqa: D102
    @property
    def granularity(self) -> str | Granularity: ...  # noqa: D102
    @property
    def scope(self) -> str: ...  # noqa: D102
    @property
    def overrides(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def min_kept(self) -> int: ...  # noqa: D102
    @property
    def rho(self) -> float: ...  # noqa: D102
    @property
    def growth(self) -> float: ...  # noqa: D102
    @property
    def bits(self) -> int | None: ...  # noqa: D102
    @property
    def fresh_optimizer(self) -> bool: ...  # noqa: D102
    @property
    def distill(self) -> float: ...  # noqa: D102
    @property
    def temperature(self) -> float | None: ...  # noqa: D102
    @property
    def round_to(self) -> int: ...  # noqa: D102
    @property
    def ignore(self) -> Any: ...  # noqa: D102
    @property
    def include_bias(self) -> bool: ...  # noqa: D102


@final
@dataclass(frozen=True, kw_only=True)
class Stages:
    """Which step does what.

    Args:
        every: steps of one iteration.
        iterations: of one stage.
        retrain: steps between the cut of a stage and the next stage.
        sparsities: of the stages; None: what the granularity or a budget says.
    """

    every: int
    iterations: int
    retrain: int
    sparsities: tuple[float | None, ...]

    @classmethod
    def of(
        cls,
        *,
        every: int | None,
        iterations: int,
        retrain: int | None,
        sparsities: tuple[float | None, ...],
        total_steps: int | None,
    ) -> "Stages":
        """Fill in what was left open.

        Raises:
            BadSchedule: the last cut would come after ``total_steps``.
        """
        if every is None and total_steps is None:
            every = 500
        if every is None:
            assert total_steps is not None
            rests = len(sparsities) - 1 if retrain is None else 0
            units = len(sparsities) * iterations + rests * ((iterations + 1) // 2)
            room = 0.6 * total_steps - (len(sparsities) - 1) * (retrain or 0)
            every = max(1, int(room / units))
        rest = every * ((iterations + 1) // 2) if retrain is None else retrain
        made = cls(every=every, iterations=iterations, retrain=rest, sparsities=sparsities)
        if total_steps is not None and made.last_cut > total_steps:
            raise BadSchedule(
                f"{len(sparsities)} stage(s) of {iterations} iterations of {every} steps end at step {made.last_cut}, but training takes "
                f"{total_steps}: choose a smaller every= or fewer iterations="
            )
        return made

    @property
    def length(self) -> int:
        """Steps from the beginning of one stage to the beginning of the next."""
        return self.every * self.iterations + self.retrain

    @property
    def last_cut(self) -> int:
        """The step at which everything is cut."""
        return self.length * (len(self.sparsities) - 1) + self.every * self.iterations

    def at(self, step: int) -> tuple[int, int]:
        """The stage that ``step`` belongs to, and how many steps of it are done."""
        stage = min(step // self.length, len(self.sparsities) - 1)
        return stage, step - stage * self.length
