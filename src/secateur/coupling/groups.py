"""From colours to groups: what leaves together, where it sits, and why the rest stays."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from secateur.coupling.dyeing import Dye
from secateur.coupling.palette import Freeze
from secateur.coupling.sizes import Sizes
from secateur.coupling.solving import solve
from secateur.errors import UnknownName
from secateur.masks import Masks
from secateur.structure import Structure

__all__ = ["Coupling", "Group"]

Place = tuple[str, int]  # parameter (or buffer) name, dimension


@dataclass(frozen=True, eq=False)
class Group:
    """Units that sit in the same places.

    Args:
        name: the weight that makes these channels.
        kind: "channel", "hidden", "head", "convolution group", "width", ...
        places: ``(tensor name, dimension)`` to indices ``[units, entries per unit]``.
        scaled: places that another one scales to zero; masks leave them, for zero over a norm of zero is no number.
    """

    name: str
    kind: str
    places: dict[Place, Tensor]
    scaled: frozenset[Place] = frozenset()

    @property
    def units(self) -> int:
        """How many units may leave."""
        return next(iter(self.places.values())).shape[0]

    @property
    def entries(self) -> int:
        """How many channels one unit spans wherever it is found, at least: 64 for a head of width 64.

        A hidden unit of an LSTM has four rows of gates and is one channel for the next layer: 1. So has a unit of a layer whose output is
        read in two halves. What has one entry for each head (a bias, a scale) is no width.
        """
        spans = {index.shape[1] for index in self.places.values()}
        return math.gcd(*(spans - {1} or spans)) if self.kind == "head" else math.gcd(*spans)

    def __str__(self) -> str:
        where = ", ".join(f"{name}[{dim}]" for name, dim in self.places)
        return f"{self.units} x {self.kind} of {self.name}: {where}"


@dataclass(frozen=True, eq=False)
class Coupling:
    """What `couple` found out about one network."""

    dye: Dye = field(repr=False)
    sizes: Sizes = field(repr=False)
    classes: Tensor = field(repr=False)
    parameters: frozenset[str] = field(repr=False)
    found: tuple[Group, ...]
    graph: GraphModule | None = field(default=None, repr=False)  # what was coupled in place of the model
    kinds: dict[str, str] = field(
        default_factory=dict, repr=False
    )  # weight to what its channels are called, see `find_groups`
    said: str = field(default="", repr=False)  # about the fallback to a graph, for the receipt

    def groups(self) -> tuple[Group, ...]:
        """The groups of units that may leave."""
        return self.found

    def weights(self) -> int:
        """How many weights the groups consist of; one that sits in two groups counts twice."""
        shapes = self.dye.shapes
        return sum(
            index.numel() * math.prod(shapes[name]) // shapes[name][dim]
            for group in self.found
            for (name, dim), index in group.places.items()
        )

    def inexact(self, structure: Structure) -> Freeze | None:
        """Why what is narrowed to ``structure`` differs from what is masked: the first norm that runs over fewer channels."""
        for colours, why in self.dye.blurred:
            blurred = torch.unique(self.classes[colours])
            for name, dims in structure.kept.items():
                for dim, stays in dims.items():
                    classes = self.classes[self.dye.owners[name][dim]].clone()
                    classes[list(stays)] = 0
                    if torch.isin(classes, blurred[blurred > 0]).any():
                        return why
        return None

    def explain(self, layer: str) -> str:
        """Say, for a module path or tensor name, what each dimension is coupled to, and why parts of it may not leave.

        Raises:
            UnknownName: nothing of that name was seen.
        """
        aliases = self.dye.aliases.items()
        names = dict.fromkeys(own for n, own in aliases if n == layer or n.startswith(f"{layer}.") or not layer)
        if not names:
            raise UnknownName(
                f"{layer!r} is no module or tensor of this network; there are: {', '.join(list(self.dye.owners)[:8])}, ..."
            )
        return "\n".join(self._explain_dim(name, dim) for name in names for dim in self.dye.owners.get(name, {}))

    def gone(self, leaving: dict[int, Tensor]) -> Tensor:
        """Which colours leave, if ``leaving[k]`` marks units of group ``k``."""
        classes = torch.zeros(self.dye.palette.size, dtype=torch.bool)
        for k, out in leaving.items():
            (name, dim), index = next(iter(self.found[k].places.items()))
            classes[self.classes[self.dye.owners[name][dim][index[out].reshape(-1)]]] = True
        classes[0] = False
        return classes[self.classes]

    def structure_for(self, masks: Masks) -> Structure:
        """The narrowed structure in which every unit is gone that ``masks`` removes from all of its places."""
        return self.structure(self.gone(self.leaving(masks)))

    def leaving(self, masks: Masks) -> dict[int, Tensor]:
        """For every group, by its place, which units ``masks`` removes from all of their places."""
        alive = {(n, d): _alive(masks[n], d) for group in self.found for n, d in group.places if n in masks}
        leaving = {}
        for k, group in enumerate(self.found):
            own = [(p, i) for p, i in group.places.items() if p[0] in self.parameters and p not in group.scaled]
            leaving[k] = torch.zeros(group.units, dtype=torch.bool)
            if all(p[0] in masks for p, _ in own):
                leaving[k] = ~torch.stack([alive[p][i].any(1) for p, i in own]).any(0)
        return leaving

    def structure(self, gone: Tensor) -> Structure:
        """What stays of every tensor, and which sizes follow.

        Raises:
            SizesDisagree: one attribute would need two values.
        """
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for name, dims in self.dye.owners.items():
            for dim, colours in dims.items():
                out = gone[colours]
                if out.any():
                    kept.setdefault(name, {})[dim] = tuple((~out).nonzero().squeeze(1).tolist())
        shapes = {name: self.dye.shapes[name] for name in kept}
        return Structure(
            shapes=shapes, kept=kept, sizes=solve(self.sizes.uses, self.sizes.before, self.sizes.valued, gone)
        )

    def freeze(self, k: int, why: Freeze) -> None:
        """Group ``k`` may not leave after all; takes effect when groups are found anew."""
        for (name, dim), index in self.found[k].places.items():
            self.dye.palette.freeze(self.dye.owners[name][dim][index.reshape(-1)], why)

    def _explain_dim(self, name: str, dim: int) -> str:
        colours = self.dye.owners[name][dim]
        held = int((self.classes[colours] == 0).sum())
        lines = [f"{name}[{dim}], {len(colours)} entries:"]
        for group in self.found:
            if (name, dim) in group.places:
                others = ", ".join(f"{n}[{d}]" for n, d in group.places if (n, d) != (name, dim))
                lines.append(f"  {group.units} {group.kind} unit(s) leave together with {others or 'nothing else'}")
        if held:
            reasons = self.dye.palette.reasons(self.classes, colours)
            why = "; ".join(str(reason) for reason in reasons[:3]) or "nothing uses them in this example"
            lines.append(f"  {held} may not leave: {why}")
        return "\n".join(lines)


def find_groups(dye: Dye, classes: Tensor, parameters: frozenset[str], kinds: dict[str, str]) -> tuple[Group, ...]:
    """Gather classes that sit in the same places, equally often, into groups."""
    sites = {(n, d): _Site(classes[colours]) for n, dims in dye.owners.items() for d, colours in dims.items()}
    heads = {int(c): kind for colours, kind in dye.heads for c in torch.unique(classes[colours]) if c}
    groups = []
    for first, places in _alike(list(sites.items()), len(classes)):
        own = [place for place in places if place[0] in parameters]
        if own:
            maker = next((n for n, d in own if kinds.get(n, "").partition("/")[2] == str(d)), next(iter(places))[0])
            kind = heads.get(first) or kinds.get(maker, "").partition("/")[0] or "channel"
            groups.append(Group(name=maker, kind=kind, places=places, scaled=dye.scaled & places.keys()))
    return tuple(groups)


class _Site:
    """The classes along one dimension of one tensor, ascending, without 0: how often each occurs and where."""

    def __init__(self, row: Tensor) -> None:
        self.order = row.argsort(stable=True)
        values, counts = torch.unique_consecutive(row[self.order], return_counts=True)
        free = values != 0
        self.values, self.counts, self.starts = values[free], counts[free], (counts.cumsum(0) - counts)[free]

    def indices(self, chosen: Tensor) -> Tensor:
        """Where the classes at these places of ``values`` sit, ``[classes, times]``; all occur equally often."""
        times = torch.arange(int(self.counts[chosen[0]]))
        return self.order[self.starts[chosen, None] + times]


def _alike(sites: list[tuple[Place, _Site]], size: int) -> Iterable[tuple[int, dict[Place, Tensor]]]:
    """Classes with the same sites and counts: the first class of each such set, and where they all sit.

    A key per class is refined site by site, so the work is done on whole arrays.
    """
    key, fresh = torch.zeros(size, dtype=torch.long), 1
    for _, site in sites:
        pairs = torch.stack([key[site.values], site.counts])
        _, inverse = torch.unique(pairs, dim=1, return_inverse=True)
        key[site.values] = fresh + inverse
        fresh += len(inverse)
    found: dict[int, tuple[int, dict[Place, Tensor]]] = {}
    for place, site in sites:
        for value, chosen in sorted(_by_value(key[site.values]), key=lambda pair: int(pair[1][0])):
            first = int(site.values[chosen[0]])
            found.setdefault(value, (first, {}))[1][place] = site.indices(chosen)
    return found.values()


def _by_value(row: Tensor) -> list[tuple[int, Tensor]]:
    order = row.argsort(stable=True)
    values, counts = torch.unique_consecutive(row[order], return_counts=True)
    return list(zip(values.tolist(), torch.split(order, counts.tolist()), strict=True))


def _alive(mask: Tensor, dim: int) -> Tensor:
    """Which indices of ``dim`` keep any weight, ``[size]``."""
    return mask.movedim(dim, 0).reshape(mask.shape[dim], -1).any(1).cpu()
