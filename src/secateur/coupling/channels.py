"""Coupled groups as a granularity of `plan`: every criterion, allocation and method works on them unchanged.

    score(unit) = finish( mean over all weights of the unit, in all its places, of each(value) )

The mean, not the sum, makes units of large and small layers comparable in one global ranking.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from secateur.coupling.groups import Group
from secateur.masks import Masks
from secateur.scores import Scores
from secateur.units import Table, Units

__all__ = ["Channels"]


@final
@dataclass(frozen=True, kw_only=True)
class Channels:
    """Channels, heads and hidden units leave with everything that belongs to them.

    Args:
        groups: what `couple` found.
    """

    groups: tuple[Group, ...]
    quota: None = None
    name: str = "channel"

    def pool(self, scores: Scores) -> Units:
        """Average each unit's evidence over its places, then finish it once."""
        sums: dict[tuple[str, int], Tensor] = {}
        tables = {}
        for group in self.groups:
            total, weights = torch.zeros(group.units), 0.0
            for (name, dim), index in group.places.items():
                if name not in scores.values:
                    continue
                if (name, dim) not in sums:
                    value = scores.each(scores.values[name].detach()).movedim(dim, 0)
                    sums[name, dim] = value.reshape(value.shape[0], -1).sum(1).float().cpu()
                total += sums[name, dim][index].sum(1)
                weights += index.shape[1] * scores.values[name].numel() / scores.values[name].shape[dim]
            tables[self.key(group)] = Table.of(scores.finish(total / max(weights, 1.0)), weights=weights)
        return Units(tables)

    def spread(self, keep: Mapping[str, Tensor], scores: Scores) -> Masks:
        """Mask every place of a unit that leaves."""
        masks: dict[str, Tensor] = {}
        for group in self.groups:
            out = ~keep[self.key(group)].reshape(-1)
            for (name, dim), index in group.places.items():
                if name in scores.values and (name, dim) not in group.scaled:
                    like = scores.values[name]
                    mask = masks.setdefault(name, torch.ones(like.shape, dtype=torch.bool, device=like.device))
                    mask.index_fill_(dim, index[out].reshape(-1).to(like.device), False)
        return Masks(masks)

    def key(self, group: Group) -> str:
        """The name of a group in `Units`: its maker, made unique where one layer makes several groups."""
        alike = [g for g in self.groups if g.name == group.name]
        return group.name if len(alike) == 1 else f"{group.name}#{next(i for i, g in enumerate(alike) if g is group)}"
