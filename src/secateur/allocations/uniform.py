"""The same fraction from every layer (``scope="layer"``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from secateur.counting import check_sparsity, kept_of
from secateur.units import Units

__all__ = ["Uniform"]


@final
@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Remove ``sparsity`` of the units of every layer; keep at least ``min_kept`` units in each."""

    sparsity: float
    min_kept: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name."""
        return {name: kept_of(self.sparsity, units.count(name), self.min_kept) for name in units}
