"""How much of a layer stays under the knife, and what leaves together."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from secateur.facts import LayerFacts
from secateur.granularities.pattern import Pattern
from secateur.granularities.unstructured import Unstructured
from secateur.layerwise.inflow import as_rows, from_rows
from secateur.planning import select
from secateur.protocols import Granularity
from secateur.quadratic import chosen_by
from secateur.scores import Scores
from secateur.solvers.column_obs import ColumnChoice

__all__ = ["Quota"]


@final
@dataclass(frozen=True, kw_only=True)
class Quota:
    """How much of one parameter stays, and what leaves together.

    Args:
        name: of the parameter.
        facts: how it is laid out.
        like: it, or a tensor of its shape.
        granularity: what leaves together.
        count: units that stay.
        groups: groups of rows with inputs of their own.
    """

    name: str
    facts: LayerFacts
    like: Tensor
    granularity: Granularity
    count: int
    groups: int = 1

    def choose(self, evidence: Tensor) -> Tensor:
        """The units with the most evidence, bool; evidence is ``[groups, rows, features]`` and adds."""
        if self.granularity == Unstructured():
            return chosen_by(evidence, self.count)
        values = {self.name: from_rows(evidence, self.facts, self.like)}
        scores = Scores(values, facts={self.name: self.facts})
        keep = select(self.granularity.pool(scores), {self.name: self.count})
        return as_rows(self.granularity.spread(keep, scores)[self.name], self.facts, self.groups)

    def columns(self, weights: int) -> ColumnChoice | None:
        """The same for the solver that goes column by column with ``weights`` to keep; None where it has no word for the pattern."""
        kind = self.granularity
        if isinstance(kind, Unstructured):
            return ColumnChoice(count=weights, per_row=kind.per_row)
        if isinstance(kind, Pattern):
            sizes = dict(kind.sizes)
            if kind.weights == "o (g m) k" and kind.quota:
                return ColumnChoice(n=kind.quota, m=sizes["m"])
            if kind.weights == "(o r) (i c) k" and kind.elements == "r c" and not kind.quota:
                return ColumnChoice(count=weights, rows=sizes["r"], columns=sizes["c"])
        return None
