"""Colours and which of them must leave together.

A colour stands for one index of one dimension of one parameter ("row 7 of conv1.weight"), or for one index of a size that
nothing owns (a *joker*: an expanded axis, a constant fill). Colour 0 means "may not leave". Ties are gathered as pairs and
settled once at the end, by label propagation on whole arrays: no Python loop over channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Freeze", "Palette"]


@dataclass(frozen=True)
class Freeze:
    """Why some colours may not leave: the operation, the module it ran in, and the reason in words."""

    operation: str
    module: str
    reason: str

    def __str__(self) -> str:
        where = f" in '{self.module}'" if self.module else ""
        return f"{self.reason} (`{self.operation}`{where})"

    @property
    def said(self) -> str:
        """The reason without the place, so that equal reasons of many layers can be counted."""
        return f"{self.reason} (`{self.operation}`)"


class Palette:
    """Hands out colours, gathers ties, settles them into classes."""

    def __init__(self) -> None:
        self.size = 1
        self._ties: list[Tensor] = []
        self.frozen: list[tuple[Tensor, Freeze]] = []
        self._seen: set[tuple[int, ...]] = set()
        self.held_by_code: list[Freeze] = []  # what a class holds that could leave in a graph

    def fresh(self, count: int) -> Tensor:
        """``count`` new colours, ``[count]``."""
        first, self.size = self.size, self.size + count
        return torch.arange(first, self.size)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Colours at equal positions leave together."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        for dim in range(a.dim()):  # a colour repeated along a dimension is stored once (stride 0): look once
            if a.shape[dim] > 1 and a.stride(dim) == 0 == b.stride(dim):
                a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.shape[1] > 4096:
            once = torch.unique(pairs[0] * self.size + pairs[1])  # one number for a pair sorts faster than two rows
            pairs = torch.stack([once // self.size, once % self.size])
        if pairs.shape[1]:
            self._ties.append(pairs)

    def freeze(self, colours: Tensor, why: Freeze) -> None:
        """These colours may not leave."""
        for dim in range(colours.dim()):
            if colours.shape[dim] > 1 and colours.stride(dim) == 0:
                colours = colours.narrow(dim, 0, 1)
        self.frozen.append((colours.reshape(-1), why))

    def settle(self) -> Tensor:
        """The class of every colour: its smallest member; 0 for colours that may not leave."""
        frozen = [torch.stack([c, torch.zeros_like(c)]) for c, _ in self.frozen]
        pairs = torch.cat([*self._ties, *frozen], 1) if self._ties or frozen else torch.zeros(2, 0, dtype=torch.long)
        label = torch.arange(self.size)
        while True:
            low = torch.minimum(label[pairs[0]], label[pairs[1]])
            fresh = label.clone()
            for side in (pairs[0], pairs[1], label[pairs[0]], label[pairs[1]]):
                fresh.scatter_reduce_(0, side, low, "amin")
            fresh = fresh[fresh]
            if torch.equal(fresh, label):
                return label
            label = fresh

    def causes(self, classes: Tensor) -> tuple[Tensor, list[Freeze]]:
        """For every colour the place in the list of a reason why it may not leave; -1 where there is none."""
        cause = torch.full((self.size,), -1)
        for place, (colours, _) in reversed(list(enumerate(self.frozen))):
            cause[colours] = place
        cause[0] = -1
        pairs = torch.cat(self._ties, 1) if self._ties else torch.zeros(2, 0, dtype=torch.long)
        pairs = pairs[:, (classes[pairs] == 0).all(0) & (pairs != 0).all(0)]
        while True:
            before = cause
            for here, there in (pairs, pairs.flip(0)):
                new = (cause[here] < 0) & (cause[there] >= 0)
                cause = cause.scatter(0, here[new], cause[there[new]])
            if torch.equal(cause, before):
                return cause, [why for _, why in self.frozen]

    def reasons(self, classes: Tensor, members: Tensor) -> list[Freeze]:
        """Why the colours in ``members`` may not leave: the freezes they were tied into (needs the tie graph)."""
        wanted = set(members[classes[members] == 0].tolist())
        hits = [why for colours, why in self.frozen if wanted & set(colours.tolist())]
        if hits:
            return list(dict.fromkeys(hits))
        return self._distant_reasons(wanted)

    def _distant_reasons(self, wanted: set[int]) -> list[Freeze]:
        pairs = torch.cat(self._ties, 1) if self._ties else torch.zeros(2, 0, dtype=torch.long)
        reached = torch.zeros(self.size, dtype=torch.bool)
        reached[list(wanted)] = True
        while True:
            hits = [why for colours, why in self.frozen if bool(reached[colours].any())]
            if hits:
                return list(dict.fromkeys(hits))
            touched = reached[pairs[0]] | reached[pairs[1]]
            wider = reached.clone()
            wider[pairs[0][touched]] = True
            wider[pairs[1][touched]] = True
            wider[0] = False
            if torch.equal(wider, reached):
                return []
            reached = wider
