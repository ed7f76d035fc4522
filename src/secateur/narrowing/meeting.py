"""Meet a budget with coupled groups: search widths on a prediction, narrow a copy, measure it, correct the aim, again.

    counts = allocation(units, pricing, aim);   the aim is moved until  measured(counts) = limit     (false position)

What is counted (parameters, multiply-accumulates, bytes) is right after a few rounds; what is timed, when it is within reach of
the clock. The best result that keeps the budget is taken; a budget is never exceeded.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, final

from torch import nn

from secateur.allocations.knapsack import Knapsack
from secateur.allocations.per_cost import PerCost
from secateur.allocations.within import Within
from secateur.budgets import Budget, spelled
from secateur.coupling import Coupling
from secateur.coupling.channels import Channels
from secateur.errors import OverBudget
from secateur.filling import floors_of
from secateur.masks import Masks
from secateur.narrowing.aims import Aims
from secateur.narrowing.narrow import cut_copy
from secateur.planning import plan
from secateur.pricing import Dimension, Pricing
from secateur.protocols import Allocation, Cost
from secateur.scores import Scores

__all__ = ["Limit", "Met", "measured", "meet", "pricing_of", "steps_of"]

_ROUNDS = 12
_SLACK = {"ms": 0.02}  # a clock is not surer than that, by unit
_SMALL_FILE = 60_000  # bytes; what is estimated of a header is more than 2 % of it


@final
@dataclass(frozen=True, kw_only=True)
class Limit:
    """A budget, and how what may stay is shared among the groups.

    Args:
        budget: what the result may cost.
        cost: how that is measured.
        family: from ``sparsity=`` to an allocation, such as `Uniform`, which is then followed as far as needed; None ranks all units
            together by score per cost.
        harms: curves of a sensitivity analysis, by group; then the widths of least harm are chosen.
        min_kept: units that stay in every group at least; below 1 a fraction of them.
        spared: this part of the width that all groups would have alike stays in every group, as long as the budget can be met that way.
            Scores that are taken before the cut do not see what a layer of very few channels takes away from all others.
    """

    budget: Budget
    cost: Cost
    family: Callable[..., Allocation] | None = None
    harms: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()
    min_kept: float = 1
    spared: float = 0.5

    @property
    def name(self) -> str:
        """The budget and how it is shared, in words."""
        amount, unit = self.budget.amount, self.cost.unit
        asked = f"{100 * amount:g}%" if self.budget.relative else spelled(amount, unit)
        shared = "score per cost" if self.family is None else f"scope {getattr(self.family, 'scope', 'of its own')!r}"
        return f"budget {self.budget.cost}:{asked}, by {'the curves' if self.harms else shared}"

    def allocation(self, pricing: Pricing, limit: float, steps: tuple[tuple[str, int], ...]) -> Allocation:
        """What decides about the widths at these prices."""
        if self.harms:
            return Knapsack(pricing=pricing, limit=limit, steps=steps, min_kept=self.min_kept, harms=self.harms)
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
        least: whether every group is as narrow as it may be.
    """

    masks: Masks
    dense: float
    limit: float
    cost: float
    least: bool = False

    def _why(self, name: str, unit: str) -> str:
        """Why it costs less than it might."""
        if self.masks.kept == self.masks.total:
            return "; the dense model keeps that as it is"
        if self.least:
            return "; every group is as narrow as it may be: little of this cost follows widths, so ask for more of it, or prune a larger model"
        if name == "bytes" and self.limit < _SMALL_FILE:
            return "; of so small a file this receipt in its header is a good part, and is estimated: the file is rather smaller"
        short = unit != "ms" and self.cost < 0.95 * self.limit
        return "; what leaves together is too large for more to stay" if short else ""

    def says(self, name: str, unit: str) -> str:
        """Asked against achieved, in a sentence."""
        what = "" if name == unit else f" {name}"  # not "99 kB bytes"
        return (
            f"Budget: at most {spelled(self.limit, unit)}{what} were asked for ({self.limit / self.dense:.1%} of the dense model's "
            f"{spelled(self.dense, unit)}), {spelled(self.cost, unit)} are left ({self.cost / self.dense:.1%})"
            f"{self._why(name, unit)}"
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
    channels, cost = Channels(groups=coupling.groups()), within.cost
    pricing = pricing_of(cost, coupling, coupling.graph or model, example_inputs)
    (dense,) = cost.measure([model], example_inputs)
    pricing = replace(pricing, factor=dense / pricing({}))
    search = _Search(model, coupling, scores, pricing, steps_of(channels, round_to), example_inputs)
    if within.spared and within.min_kept == 1:
        least = within.spared * pricing.alike(min(dense, within.budget.limit(dense)))
        with suppress(OverBudget):
            return search(replace(within, min_kept=least))
    return search(within)


@dataclass(frozen=True, eq=False)
class _Search:
    """Widths of one network at known prices."""

    model: nn.Module
    coupling: Coupling
    scores: Scores
    pricing: Pricing
    steps: tuple[tuple[str, int], ...]
    example_inputs: Any

    def __call__(self, within: Limit) -> Met:
        """Aim, narrow, measure, again."""
        channels, cost, pricing = Channels(groups=self.coupling.groups()), within.cost, self.pricing
        least = pricing(floors_of(channels.pool(self.scores), dict(self.steps), within.min_kept))
        aims = Aims(start=pricing({}), least=least, slack=_SLACK.get(cost.unit, 0.0))
        best: Met | None = None
        for _ in range(_ROUNDS):
            masks = plan(self.scores, channels, within.allocation(pricing, aims.next, self.steps))
            dense, now = measured(self.model, self.coupling, masks, cost, self.example_inputs)
            near = aims.near(now / within.budget.limit(dense))
            if near and aims.slack:  # a clock is asked twice: it may have been luck
                again = measured(self.model, self.coupling, masks, cost, self.example_inputs)
                dense, now = (dense + again[0]) / 2, (now + again[1]) / 2
            limit = within.budget.limit(dense)
            if now <= limit and (best is None or now / limit > best.cost / best.limit):
                best = Met(masks=masks, dense=dense, limit=limit, cost=now, least=aims.next <= aims.least)
            if not aims.learn(now / limit):
                break
        if best is None:
            raise OverBudget(
                f"no widths were found that cost at most {spelled(limit, cost.unit)}: the nearest cost {spelled(now, cost.unit)}, all "
                f"channels {spelled(dense, cost.unit)}; raise the budget, or let more leave (ignore=, min_kept=, round_to=)"
                f"{_hint(within.budget, cost.unit, faster=now < dense)}"
            )
        return best


def _hint(budget: Budget, unit: str, *, faster: bool) -> str:
    """What else may be the matter where no widths are found."""
    if budget.cost == "bytes":
        return "; the receipt in the header of the file counts, too"
    if unit == "ms" and not faster:
        return (
            "; narrower it is no faster on this machine: the model may be too small, or torch may run whole encoder layers in one kernel, "
            "which it does not where heads were taken out (ignore= leaves attention as it is)"
        )
    if not budget.relative and not unit and budget.amount <= 100:
        return f"; '{budget.cost}:{budget.amount:g}%' would be per cent of the dense model"
    return ""


def measured(
    model: nn.Module, coupling: Coupling, masks: Masks, cost: Cost, example_inputs: Any
) -> tuple[float, float]:
    """What the model and its narrowed copy cost, side by side."""
    structure = coupling.structure_for(masks)
    if not structure.kept:  # timed against itself, a disturbed clock would mislead the search from its start
        (dense,) = cost.measure([model], example_inputs)
        return dense, dense
    dense, now = cost.measure([model, cut_copy(model, coupling, structure)], example_inputs)
    return dense, now


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
