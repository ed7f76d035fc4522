"""Scores: additive evidence per weight, and one map that is applied once per unit after adding.

    score(unit) = finish( sum over weights w of the unit of each(value(w)) )

Because evidence adds, every criterion works at every granularity: L1 is ``each=abs``; L2 is ``each=square`` and
``finish=sqrt``; first-order Taylor keeps signed ``g·w`` and finishes with a square. ``each`` is applied piece by piece while
ranking, so magnitude needs no second copy of the weights.

A criterion that judges whole channels (a batch-norm scale, what flows through a channel) has no evidence per weight. It says
``channels``: evidence per index of one dimension of a parameter, which only granularities of channels can pool.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from secateur.errors import BadScores
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
        channels: ``(parameter, dimension)`` to evidence per index, ``[size]`` or ``[size, examples]``; where it is given, ``values``
            only say shapes, ``each`` is not applied, and ``finish`` also reduces the examples.
        said: what it was found with, for the receipt: labels, samples.
        average: whether the evidence of a unit that sits in several places is averaged over them or added.
    """

    values: Mapping[str, Tensor]
    each: Callable[[Tensor], Tensor] = unchanged
    finish: Callable[[Tensor], Tensor] = unchanged
    facts: Mapping[str, LayerFacts] = field(default_factory=dict)
    channels: Mapping[tuple[str, int], Tensor] | None = None
    average: bool = True
    said: str = ""

    def per_weight(self, granularity: str) -> Mapping[str, Tensor]:
        """The evidence per weight.

        Raises:
            BadScores: there is none, only evidence per channel.
        """
        if self.channels is not None:
            raise BadScores(
                f"this criterion judges whole channels, so it cannot rank the units of granularity {granularity!r}; use "
                "granularity='channel' with example_inputs=, or a criterion of weights such as 'magnitude' or 'taylor'"
            )
        return self.values

    def layout(self, name: str) -> LayerFacts:
        """How the parameter ``name`` is laid out."""
        return self.facts.get(name, LayerFacts())
