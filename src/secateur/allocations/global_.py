"""One ranking over all layers (``scope="global"``): as if every score were sorted in one list."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from secateur.counting import check_sparsity, kept_of
from secateur.ranking.selection import counts_with_floors
from secateur.units import Units

__all__ = ["Global"]


@final
@dataclass(frozen=True, kw_only=True)
class Global:
    """Remove ``sparsity`` of all units, the lowest scores first, wherever they are; keep at least ``min_kept`` per layer."""

    sparsity: float
    min_kept: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name; the total is exactly ``round((1 - sparsity) * total)``.

        Raises:
            BadSparsity: ``min_kept`` alone asks for more than may stay.
        """
        return counts_with_floors(units, kept_of(self.sparsity, units.total), self.min_kept)
