"""A pattern is an arrangement: how canonical weights ``o i k`` are laid out as ``group unit element``.

    filter          o i k             -> ()        o      (i k)
    N:M             o (g m) k         -> (o k g)   m      ()
    block R x C     (o r) (i c) k     -> ()        (o i k) (r c)

The arrangement is written once, in einops notation, and read both ways: forwards to pool scores, backwards to spread
decisions. A new pattern is one line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from einops import EinopsError, rearrange, repeat
from torch import Tensor

from secateur.errors import BadPattern
from secateur.masks import Masks
from secateur.scores import Scores
from secateur.units import Table, Units

__all__ = ["Pattern"]


@final
@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A granularity that looks at one parameter at a time.

    Args:
        name: what users call it ("2:4", "filter", ...).
        weights: the canonical weights, e.g. ``"o (g m) k"``.
        groups, units, elements: where each letter goes; together they use every letter of ``weights`` once.
        sizes: the fixed sizes of letters, e.g. ``(("m", 4),)``.
        quota: how many units stay in every group; ``None`` where an allocation decides.
    """

    name: str
    weights: str
    groups: str
    units: str
    elements: str
    sizes: tuple[tuple[str, int], ...] = ()
    quota: int | None = None

    def pool(self, scores: Scores) -> Units:
        """Add each unit's evidence, then finish it once.

        Raises:
            BadPattern: some shapes do not divide into this pattern; all of them are named.
        """
        self._check(scores)
        return Units({name: self._table(name, scores) for name in scores.per_weight(self.name)})

    def spread(self, keep: Mapping[str, Tensor], scores: Scores) -> Masks:
        """Give every weight the decision of its unit."""
        return Masks({name: self._lay_out(decision, name, scores) for name, decision in keep.items()})

    def fold(self, canonical: Tensor) -> Tensor:
        """Arrange ``[out, in, taps]`` as ``[group, unit, element]``."""
        arranged = f"{self.weights} -> ({self.groups}) ({self.units}) ({self.elements})"
        folded: Tensor = rearrange(canonical, arranged, **dict(self.sizes))
        return folded

    def _table(self, name: str, scores: Scores) -> Table:
        value, layout = scores.values[name].detach(), scores.layout(name)
        groups, units, elements = self.fold(layout.canonical(value.to("meta"))).shape

        def read(start: int, stop: int) -> Tensor:
            if not pooled:
                evidence = scores.each(self.fold(layout.canonical(value)))
                pooled.append(scores.finish(_total(evidence) if elements != 1 else evidence.squeeze(-1)).reshape(-1))
            # Pooled scores of larger units are small and kept; single weights are read once, so let them go.
            return (pooled[0] if elements != 1 or stop < groups * units else pooled.pop())[start:stop]

        pooled: list[Tensor] = []
        return Table(shape=(groups, units), read=read, weights=elements, layout=layout, tensor_shape=tuple(value.shape))

    def _lay_out(self, decision: Tensor, name: str, scores: Scores) -> Tensor:
        like, layout = scores.values[name], scores.layout(name)
        canonical = layout.canonical(like.detach().to("meta"))
        letters = dict(zip("oik", canonical.shape, strict=True))
        elements = self.fold(canonical).shape[-1]
        wide = repeat(decision, "g u -> g u e", e=elements)
        backwards = f"({self.groups}) ({self.units}) ({self.elements}) -> {self.weights}"
        mask = rearrange(wide, backwards, **self._letter_sizes(letters))
        return layout.original(mask, like)

    def _letter_sizes(self, canonical: Mapping[str, int]) -> dict[str, int]:
        """The size of every letter: fixed ones as given, the free letter of each bracket by division."""
        sizes = dict(self.sizes)
        for axis, whole in zip(self._axes(), canonical.values(), strict=True):
            fixed = [letter for letter in axis if letter in sizes]
            free = next(letter for letter in axis if letter not in sizes)
            divisor = 1
            for letter in fixed:
                divisor *= dict(self.sizes)[letter]
            sizes[free] = whole // divisor
        return sizes

    def _axes(self) -> list[list[str]]:
        """``"o (g m) k"`` as ``[["o"], ["g", "m"], ["k"]]``."""
        axes: list[list[str]] = []
        inside = False
        for token in self.weights.replace("(", " ( ").replace(")", " ) ").split():
            if token in "()":
                inside = token == "("
                if inside:
                    axes.append([])
            elif inside:
                axes[-1].append(token)
            else:
                axes.append([token])
        return axes

    def _check(self, scores: Scores) -> None:
        misfits = {}
        for name, value in scores.values.items():
            canonical = scores.layout(name).canonical(value.detach().to("meta"))
            try:
                self.fold(canonical)
            except EinopsError:
                misfits[name] = canonical.shape
        if misfits:
            said = "; ".join(f"{n!r} has {s[0]} output and {s[1]} input channels" for n, s in misfits.items())
            need = " and ".join(f"{letter}={size}" for letter, size in self.sizes)
            layers = sorted({n.rpartition(".")[0] or n for n in misfits})
            raise BadPattern(
                f"{said}, which do not divide into the pattern {self.name!r} ({need}); exclude them with ignore={layers!r}"
            )


def _total(evidence: Tensor) -> Tensor:
    """The sum over each unit; of halves in float32, where it can neither overflow nor round units into ties."""
    half = evidence.is_floating_point() and evidence.element_size() < 4
    return evidence.sum(-1, dtype=torch.float32) if half else evidence.sum(-1)
