"""Scores: additive evidence per weight, and one map that is applied once per unit after adding.

    score(unit) = finish( sum over weights w of the unit of each(value(w)) )

Because evidence adds, every criterion works at every granularity: L1 is ``each=abs``; L2 is ``each=square`` and
``finish=sqrt``; first-order Taylor keeps signed ``g·w`` and finishes with a square. ``each`` is applied piece by piece while
ranking, so magnitude needs no second copy of the weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from secateur.facts import LayerFacts

__all__ = ["Scores", "unchanged"]


def unchanged(evidence: Tensor) -> Tensor:
    """Return the evidence as it is."""
    return evidence


@dataclass(frozen=True)
class Scores:
    """Evidence per weight for every prunable parameter.

    Args:
        values: parameter name to a tensor of the parameter's shape. It may be the parameter itself: nothing is written.
        each: elementwise map, applied to values as they are read.
        finish: elementwise map, applied once to the sum over each unit.
        facts: how each parameter is laid out; without it ``[out, in, ...]`` is taken.
    """

    values: Mapping[str, Tensor]
    each: Callable[[Tensor], Tensor] = unchanged
    finish: Callable[[Tensor], Tensor] = unchanged
    facts: Mapping[str, LayerFacts] = field(default_factory=dict)

    def layout(self, name: str) -> LayerFacts:
        """How the parameter ``name`` is laid out."""
        return self.facts.get(name, LayerFacts())
