"""Coupled groups as a granularity of `plan`: every criterion, allocation and method works on them unchanged.

    score(unit) = finish( mean over all weights of the unit, in all its places, of each(value) )

The mean, not the sum, makes units of large and small layers comparable in one global ranking. Evidence that a criterion gives per
channel is averaged (or added, if the criterion says so) over the places that it names; a group it says nothing about stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from secateur.coupling.groups import Group
from secateur.errors import BadScores
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
        """Gather each unit's evidence over its places, then finish it once.

        Raises:
            BadScores: the criterion says nothing about any group.
        """
        if scores.channels is None:
            return Units({self.key(group): table for group, table in self._of_weights(scores)})
        found = {self.key(group): _of_channels(group, scores) for group in self.groups}
        tables = {key: table for key, table in found.items() if table is not None}
        if not tables:
            raise BadScores(
                "this criterion says nothing about any group of coupled channels here (a batch-norm criterion on a network without "
                "batch norms, say); use another one, such as 'magnitude' or 'taylor'"
            )
        return Units(tables)

    def _of_weights(self, scores: Scores) -> list[tuple[Group, Table]]:
        sums: dict[tuple[str, int], Tensor] = {}
        found = []
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
            found.append((group, Table.of(scores.finish(total / max(weights, 1.0)), weights=weights)))
        return found

    def spread(self, keep: Mapping[str, Tensor], scores: Scores) -> Masks:
        """Mask every place of a unit that leaves."""
        masks: dict[str, Tensor] = {}
        for group in self.groups:
            kept = keep.get(self.key(group))
            out = torch.zeros(group.units, dtype=torch.bool) if kept is None else ~kept.reshape(-1)
            for (name, dim), index in group.places.items():
                if name in scores.values and (name, dim) not in group.scaled:
                    like = scores.values[name]
                    mask = masks.setdefault(name, torch.ones(like.shape, dtype=torch.bool, device=like.device))
                    mask.index_fill_(dim, index[out.to(index.device)].reshape(-1).to(like.device), False)
        return Masks(masks)

    def scores_of(self, units: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Scores:
        """Scores of which `pool` makes the given ones again: for what is known per unit, not per weight.

        Args:
            units: group to a score for each of its units.
            values: the parameters that the units sit in.
        """
        channels: dict[tuple[str, int], Tensor] = {}
        for group in self.groups:
            if self.key(group) in units:
                (name, dim), index = next((p, i) for p, i in group.places.items() if p[0] in values)
                evidence = channels.setdefault((name, dim), torch.zeros(values[name].shape[dim]))
                evidence[index] = (units[self.key(group)].float().cpu() / index.shape[1]).unsqueeze(1)
        return Scores(values, channels=channels, average=False)

    def alive(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which units of every group ``masks`` keep in any place, ``[units]``."""
        found = {}
        for group in self.groups:
            kept = torch.zeros(group.units, dtype=torch.bool)
            for (name, dim), index in group.places.items():
                if name in masks:
                    mask = masks[name].movedim(dim, 0)
                    kept |= mask.reshape(mask.shape[0], -1).any(1).cpu()[index].any(1)
            found[self.key(group)] = kept
        return found

    def key(self, group: Group) -> str:
        """The name of a group in `Units`: its maker, made unique where one layer makes several groups."""
        alike = [g for g in self.groups if g.name == group.name]
        return group.name if len(alike) == 1 else f"{group.name}#{next(i for i, g in enumerate(alike) if g is group)}"


def _of_channels(group: Group, scores: Scores) -> Table | None:
    """Evidence per channel, ``[size, ...]`` by place, gathered to ``[units, ...]``; None where no place of the group has any."""
    assert scores.channels is not None
    total, entries = None, 0
    for place, index in group.places.items():
        if place in scores.channels:
            here = scores.channels[place].float().cpu()[index].sum(1)
            total, entries = here if total is None else total + here, entries + index.shape[1]
    if total is None:
        return None
    return Table.of(scores.finish(total / entries if scores.average else total), weights=entries)
