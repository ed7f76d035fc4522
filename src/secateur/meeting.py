"""Meet a budget with coupled groups: search widths on a prediction, narrow a copy, measure it, correct the prediction, again.

    counts = allocation(units, pricing, limit);   pricing <- pricing * measured(counts) / pricing(counts)

What is counted (parameters, multiply-accumulates, bytes) is right after one or two rounds; what is timed, when it is within reach of
the clock. The best result that keeps the budget is taken; a budget is never exceeded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, final

from torch import nn

from secateur.allocations.per_cost import PerCost
from secateur.allocations.within import Within
from secateur.budgets import Budget, spelled
from secateur.coupling import Coupling
from secateur.coupling.channels import Channels
from secateur.errors import OverBudget
from secateur.masks import Masks
from secateur.narrowing import cut_copy
from secateur.planning import plan
from secateur.pricing import Dimension, Pricing
from secateur.protocols import Allocation, Cost
from secateur.scores import Scores

__all__ = ["Limit", "Met", "meet", "pricing_of", "steps_of"]

_ROUNDS = 8
_CLOSE = {"ms": 0.03}  # how far below the limit is near enough, by unit; counts go on until nothing changes


@final
@dataclass(frozen=True, kw_only=True)
class Limit:
    """A budget, and how what may stay is shared among the groups.

    Args:
        budget: what the result may cost.
        cost: how that is measured.
        family: from ``sparsity=`` to an allocation, such as `Uniform`, which is then followed as far as needed; None ranks all units
            together by score per cost.
        min_kept: units that stay in every group at least.
    """

    budget: Budget
    cost: Cost
    family: Callable[..., Allocation] | None = None
    min_kept: int = 1

    def allocation(self, pricing: Pricing, limit: float, steps: tuple[tuple[str, int], ...]) -> Allocation:
        """What decides about the widths at these prices."""
        if self.family is None:
            return PerCost(pricing=pricing, limit=limit, steps=steps, min_kept=self.min_kept)
        return Within(pricing=pricing, limit=limit, steps=steps, min_kept=self.min_kept, family=self.family)


@dataclass(frozen=True, kw_only=True)
class Met:
    """A budget and what came of it, in the cost's unit.

    Args:
        masks: what stays.
        dense: what the dense model costs.
        limit: what was allowed.
        cost: what the narrowed model costs.
    """

    masks: Masks
    dense: float
    limit: float
    cost: float

    def says(self, name: str, unit: str) -> str:
        """Asked against achieved, in a sentence."""
        return (
            f"Budget: at most {spelled(self.limit, unit)} {name} were asked for ({self.limit / self.dense:.1%} of the dense model's "
            f"{spelled(self.dense, unit)}), {spelled(self.cost, unit)} are left ({self.cost / self.dense:.1%})"
        )


def meet(
    model: nn.Module,
    coupling: Coupling,
    scores: Scores,
    *,
    within: Limit,
    example_inputs: Any,
    round_to: int = 1,
) -> Met:
    """Find the masks that keep the most within the limit.

    Raises:
        OverBudget: the smallest widths cost more.
    """
    channels, cost, budget = Channels(groups=coupling.groups()), within.cost, within.budget
    steps = steps_of(channels, round_to)
    runs = coupling.graph or model
    pricing = pricing_of(cost, coupling, runs, example_inputs)
    (dense,) = cost.measure([model], example_inputs)
    pricing = replace(pricing, factor=dense / pricing({}))
    best: Met | None = None
    tried: set[Any] = set()
    for _ in range(_ROUNDS):
        limit = budget.limit(dense)
        masks = plan(scores, channels, within.allocation(pricing, limit, steps))
        counts = _counts(channels, masks, scores)
        dense, now = _measured(model, coupling, masks, cost, example_inputs)
        limit = budget.limit(dense)
        if now <= limit and (best is None or now / dense > best.cost / best.dense):
            best = Met(masks=masks, dense=dense, limit=limit, cost=now)
        if (now <= limit and now >= limit * (1 - _CLOSE.get(cost.unit, 0.0))) or tuple(counts.items()) in tried:
            break
        tried.add(tuple(counts.items()))
        predicted = pricing(counts)
        if abs(predicted / now - 1) < 1e-9:
            break
        pricing = replace(pricing, factor=pricing.factor * now / predicted)
    if best is None:
        raise OverBudget(
            f"no widths were found that cost at most {spelled(budget.limit(dense), cost.unit)}: the nearest cost "
            f"{spelled(now, cost.unit)}; raise the budget, or let more leave (ignore=, min_kept=, round_to=)"
        )
    return best


def _measured(
    model: nn.Module, coupling: Coupling, masks: Masks, cost: Cost, example_inputs: Any
) -> tuple[float, float]:
    """What the model and its narrowed copy cost, side by side."""
    structure = coupling.structure_for(masks)
    thin = cut_copy(model, coupling, structure) if structure.kept else model
    dense, now = cost.measure([model, thin], example_inputs)
    return dense, now


def _counts(channels: Channels, masks: Masks, scores: Scores) -> dict[str, int]:
    counts = {}
    for group in channels.groups:
        (name, dim), index = next((p, i) for p, i in group.places.items() if p[0] in scores.values)
        alive = masks[name].movedim(dim, 0).flatten(1).any(1) if masks[name].dim() > 1 else masks[name]
        counts[channels.key(group)] = int(alive.cpu()[index].any(1).sum())
    return counts


def pricing_of(cost: Cost, coupling: Coupling, model: nn.Module, example_inputs: Any) -> Pricing:
    """The cost of ``model`` as a function of how many units of each group stay."""
    channels = Channels(groups=coupling.groups())
    entries: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for group in channels.groups:
        for place, index in group.places.items():
            entries.setdefault(place, []).append((channels.key(group), index.shape[1]))
    shapes = coupling.dye.shapes
    return Pricing(
        parts=cost.parts(model, example_inputs),
        dimensions=tuple(Dimension(place, shapes[place[0]][place[1]], tuple(of)) for place, of in entries.items()),
        units=tuple((channels.key(group), group.units) for group in channels.groups),
    )


def steps_of(channels: Channels, round_to: int) -> tuple[tuple[str, int], ...]:
    """How many units of each group come and go together, so that widths stay multiples of ``round_to``."""
    return tuple((channels.key(group), round_to // gcd(round_to, group.entries)) for group in channels.groups)
