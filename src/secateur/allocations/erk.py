"""Erdős–Rényi-Kernel: density in proportion to (sum of a layer's sizes) / (their product).

    density_l  ~  (n_out + n_in + k_1 + k_2 + ...) / (n_out * n_in * k_1 * k_2 * ...),  at most 1

Evci et al. 2020, "Rigging the Lottery", section 3; the plain Erdős–Rényi form is Mocanu et al. 2018. Layers that would need a
density above 1 stay dense and the others share what is left. Larger layers become sparser.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from secateur.counting import check_sparsity, kept_of, share_out
from secateur.units import Table, Units

__all__ = ["Erk"]


@final
@dataclass(frozen=True, kw_only=True)
class Erk:
    """Remove ``sparsity`` of all units in total, layer by layer by Erdős–Rényi-Kernel densities."""

    sparsity: float
    min_kept: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name; the total is exact.

        Raises:
            BadSparsity: ``min_kept`` alone asks for more than may stay.
        """
        shares = {name: _raw_density(table) * table.count for name, table in units.tables.items()}
        limits = {name: units.count(name) for name in units}
        return share_out(shares, kept_of(self.sparsity, units.total), limits=limits, min_kept=self.min_kept)


def _raw_density(table: Table) -> float:
    sizes = table.tensor_shape or table.shape
    return sum(sizes) / max(1, math.prod(sizes))  # an empty layer has nothing to share
