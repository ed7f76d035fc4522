"""Euclidean projections onto what may stay: the nearest weights that keep a pattern, a number of units or a budget.

    Proj(V) = argmin over Z in S of |Z - V|^2 = V where kept, else 0;      kept: the units with the largest sum of squares

That is exact wherever units do not overlap: single weights, N:M, blocks, filters, columns. Coupled channels overlap in the weights that
connect two groups, so their constraint is put on what makes a channel (the rows of the layers that write it, its bias and its norm),
where every weight belongs to one unit only; a channel that nothing makes is gone, whatever reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from secateur.coupling import Coupling
from secateur.coupling.channels import Channels
from secateur.facts import LayerFacts
from secateur.layers import made_by
from secateur.masks import Masks
from secateur.narrowing.meeting import Limit
from secateur.narrowing.thinning import choose, members_of
from secateur.planning import plan
from secateur.protocols import Allocation, Granularity
from secateur.scores import Scores

__all__ = ["OntoChannels", "OntoPattern", "Projection"]


class Projection(Protocol):
    """A set of weights that are allowed, and how to find the nearest one."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that the constraint is on."""

    def masks(self, values: Mapping[str, Tensor], share: Allocation | Limit | None, within: Masks | None) -> Masks:
        """What stays of ``values``, on the names of everything that leaves with it."""

    def bound(self, masks: Masks) -> Masks:
        """The part of ``masks`` that the constraint is on."""


@final
@dataclass(frozen=True, kw_only=True)
class OntoPattern:
    """Weights, N:M, blocks, rows, filters, ...: any granularity of single parameters."""

    granularity: Granularity
    facts: Mapping[str, LayerFacts] = field(hash=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Every target."""
        return tuple(self.facts)

    def masks(self, values: Mapping[str, Tensor], share: Allocation | Limit | None, within: Masks | None) -> Masks:
        """Keep the units with the largest sum of squares."""
        assert not isinstance(share, Limit)
        wanted = None if self.granularity.quota is not None else share
        return plan(
            Scores(values, each=_square, finish=torch.sqrt, facts=self.facts), self.granularity, wanted, within=within
        )

    def bound(self, masks: Masks) -> Masks:
        """All of it."""
        return masks


@final
class OntoChannels:
    """Coupled channels: which units of every group stay, by the energy of what makes them."""

    def __init__(self, model: nn.Module, coupling: Coupling, example_inputs: Any, *, round_to: int = 1) -> None:
        self.model, self.coupling, self.example_inputs, self.round_to = model, coupling, example_inputs, round_to
        self.channels = Channels(groups=coupling.groups())
        self._members = {name: model.get_parameter(name).detach() for name in members_of(coupling, model)}
        self._makers = _makers(self.channels, self._members, made_by(model, self._members))
        self._said: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What makes the channels of some group."""
        return tuple(dict.fromkeys(name for places in self._makers.values() for name, _, _ in places))

    @property
    def said(self) -> tuple[str, ...]:
        """What came of the budget the last time, in words."""
        return self._said

    def masks(self, values: Mapping[str, Tensor], share: Allocation | Limit | None, within: Masks | None) -> Masks:
        """Keep the units with the largest sum of squares over what makes them; with a budget, by that sum per cost."""
        assert share is not None
        energies = {key: self.energy(values, key) for key in self._makers}
        if within is not None:
            alive = self.channels.alive(within)
            energies = {key: found.masked_fill(~alive[key], -1.0) for key, found in energies.items()}
        scores = self.channels.scores_of(energies, self._members)
        masks, self._said = choose(
            self.model, self.coupling, scores, share, example_inputs=self.example_inputs, round_to=self.round_to
        )
        return masks if within is None else masks & within

    def energy(self, values: Mapping[str, Tensor], key: str) -> Tensor:
        """The sum of squares of what makes each unit of a group, ``[units]``."""
        total: Tensor | None = None
        for name, dim, index in self._makers[key]:
            rows = _square(values[name].detach()).movedim(dim, 0).flatten(1) if values[name].dim() > 1 else None
            here = (rows.sum(1) if rows is not None else _square(values[name].detach())).cpu()[index].sum(1)
            total = here if total is None else total + here
        assert total is not None
        return total

    def spread(self, keep: Mapping[str, Tensor]) -> Masks:
        """Masks on everything that leaves with the units that ``keep`` does not name."""
        return self.channels.spread(keep, Scores(self._members))

    def bound(self, masks: Masks) -> Masks:
        """The rows, biases and norms that make a channel."""
        alive, found = self.channels.alive(masks), dict[str, Tensor]()
        for key, places in self._makers.items():
            for name, dim, index in places:
                like = self._members[name]
                mask = found.setdefault(name, torch.ones_like(like, dtype=torch.bool))
                mask.index_fill_(dim, index[~alive[key]].reshape(-1).to(like.device), False)
        return Masks(found)


def _makers(
    channels: Channels, members: Mapping[str, Tensor], made: Mapping[str, int]
) -> dict[str, list[tuple[str, int, Tensor]]]:
    """For every group the places that make its units; all its places where none does."""
    found = {}
    for group in channels.groups:
        places = [
            (name, dim, index)
            for (name, dim), index in group.places.items()
            if name in members and (name, dim) not in group.scaled
        ]
        makers = [(name, dim, index) for name, dim, index in places if dim == made.get(name, 0)]
        makers = [place for place in makers if members[place[0]].dim() == 1 or place[0] in made]
        found[channels.key(group)] = makers or places
    return found


def _square(weights: Tensor) -> Tensor:
    return weights.double().square()  # squares of 1e-30 would be zero in less, and tie
