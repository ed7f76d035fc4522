"""Some layers by hand, the rest by another allocation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from secateur.counting import check_sparsity, kept_of, lookup_per_layer
from secateur.protocols import Allocation
from secateur.units import Units

__all__ = ["PerLayer"]


@final
@dataclass(frozen=True, kw_only=True)
class PerLayer:
    """Remove what ``sparsities`` says from the layers it names; ``otherwise`` decides about all others, on their own.

    Args:
        sparsities: pairs of (parameter name, module path or glob, sparsity); the first match wins.
        otherwise: the allocation for the layers that no pair names.
        min_kept: units that stay at least in the layers that are named.
    """

    sparsities: tuple[tuple[str, float], ...]
    otherwise: Allocation
    min_kept: int = 0

    def __post_init__(self) -> None:
        for key, sparsity in self.sparsities:
            check_sparsity(sparsity, f"the sparsity of {key!r}")

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Count what stays per name.

        Raises:
            UnknownName: a key matches no prunable layer.
        """
        named = self.named(units)
        rest = units.only([name for name in units if name not in named])
        return (dict(self.otherwise(rest)) if rest else {}) | named

    def named(self, units: Units) -> dict[str, int]:
        """Count what stays of the layers that are named.

        Raises:
            UnknownName: a key matches no prunable layer.
        """
        chosen = lookup_per_layer(dict(self.sparsities), list(units), "overrides")
        return {name: kept_of(sparsity, units.count(name), self.min_kept) for name, sparsity in chosen.items()}
