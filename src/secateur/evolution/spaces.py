"""The space in which one generator is searched: its coupled groups, what they cost, and what a genome stands for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.coupling import Coupling
from secateur.coupling.channels import Channels
from secateur.evolution.genomes import Bits, Genomes
from secateur.limits import limit_of
from secateur.masks import Masks
from secateur.narrowing.meeting import pricing_of
from secateur.narrowing.narrow import cut_copy
from secateur.narrowing.thinning import members_of
from secateur.pricing import Part, Pricing
from secateur.protocols import Cost
from secateur.scores import Scores
from secateur.structure import Structure

__all__ = ["Space", "space_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Space:
    """One generator and its genomes.

    Args:
        model: the dense generator.
        coupling: what is coupled in it.
        genomes: over the units of its groups, within the budgets.
        price: what the weighted form counts.
        dense: what the dense generator costs by that.
    """

    model: nn.Module
    coupling: Coupling
    genomes: Genomes
    price: Pricing
    dense: float

    def share(self, bits: Bits) -> float:
        """What a genome costs, as a part of the dense generator."""
        return self.price(self.genomes.counts(bits)) / self.dense

    def structure(self, bits: Bits) -> Structure:
        """To what the genome narrows the generator."""
        parts = self.genomes.split(bits).values()
        return self.coupling.structure(self.coupling.gone({k: ~torch.from_numpy(p) for k, p in enumerate(parts)}))

    def masks(self, bits: Bits) -> Masks:
        """The genome as masks."""
        channels = Channels(groups=self.coupling.groups())
        values = {name: self.model.get_parameter(name).detach() for name in members_of(self.coupling, self.model)}
        keep = {name: torch.from_numpy(part) for name, part in self.genomes.split(bits).items()}
        return channels.spread(keep, Scores(values))

    def bits(self, masks: Masks) -> Bits:
        """The genome of masks."""
        return self.genomes.joined(
            {k: v.numpy() for k, v in Channels(groups=self.coupling.groups()).alive(masks).items()}
        )

    def amounts(self) -> list[list[float]]:
        """The prices as numbers, for a checkpoint: those of latency are measured, and never quite the same again."""
        return [
            [self.dense, limit, pricing.factor, *(part.amount for part in pricing.parts)]
            for pricing, limit in self._prices()
        ]

    def priced(self, amounts: list[list[float]]) -> "Space":
        """The same space at the prices of `amounts`."""
        prices = [
            (replace(pricing, factor=row[2], parts=tuple(map(_part, row[3:], pricing.parts))), row[1])
            for (pricing, _), row in zip(self._prices(), amounts, strict=True)
        ]
        genomes = replace(self.genomes, limits=tuple(prices[1:]))
        return replace(self, genomes=genomes, price=prices[0][0], dense=amounts[0][0])

    def _prices(self) -> list[tuple[Pricing, float]]:
        return [(self.price, 0.0), *self.genomes.limits]


def space_of(
    model: nn.Module,
    coupling: Coupling,
    *,
    cost: Cost,
    budgets: Sequence[str],
    example_inputs: Any,
    min_kept: int = 1,
    round_to: int = 1,
) -> Space:
    """Price a generator.

    Args:
        model: the dense generator.
        coupling: what is coupled in it.
        cost: what the weighted form counts.
        budgets: what the result may cost, all at once, such as ``("params:25%", "macs:25%")``.
        example_inputs: for what is counted or measured.
        min_kept: units that stay in every group at least.
        round_to: widths are multiples of this.
    """
    channels = Channels(groups=coupling.groups())
    units = tuple((channels.key(group), group.units) for group in coupling.groups())
    free = Genomes(units=units, min_kept=min_kept, round_to=round_to)
    limits = []
    for text in budgets:
        limit = limit_of(text)
        price, dense = _held(limit.cost, model, coupling, free, example_inputs)
        limits.append((price, limit.budget.limit(dense)))
    price, dense = _held(cost, model, coupling, free, example_inputs)
    return Space(
        model=model,
        coupling=coupling,
        genomes=replace(free, limits=tuple(limits)),
        price=price,
        dense=dense,
    )


def _held(
    cost: Cost, model: nn.Module, coupling: Coupling, genomes: Genomes, example_inputs: Any
) -> tuple[Pricing, float]:
    """The prices, multiplied so that they are right for a network of half the widths, and what the dense one costs."""
    pricing = pricing_of(cost, coupling, model, example_inputs)
    half = np.concatenate([np.arange(units) * 2 < units for _, units in genomes.units])
    parts = genomes.split(half).values()
    structure = coupling.structure(coupling.gone({k: ~torch.from_numpy(p) for k, p in enumerate(parts)}))
    if not structure.kept:
        return pricing, cost.measure([model], example_inputs)[0]
    dense, measured = cost.measure([model, cut_copy(model, coupling, structure)], example_inputs)  # in turns, if timed
    return replace(pricing, factor=measured / pricing(genomes.counts(half))), dense


def _part(amount: float, part: Part) -> Part:
    return part._replace(amount=amount)
