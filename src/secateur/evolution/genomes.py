"""Genomes: one bit for every unit of every group of coupled channels; a bit says whether the unit lives.

genome      0110 1011 | 11100101 | ...            a stretch for each group, in the order in which the groups were found
fitting     widths become multiples of ``round_to``, every group keeps ``min_kept`` units, and what leaves or returns so that
the cost meets the limits is drawn at random:   cost(bits) <= limit, and any further unit would exceed it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from secateur.errors import OverBudget
from secateur.pricing import Pricing

__all__ = ["Bits", "Genomes", "hexed", "unhexed"]

Bits = npt.NDArray[np.bool_]
_LAST_TRIES = 16


def hexed(bits: Bits) -> str:
    """A genome as a word.

    >>> hexed(np.array([True, False, True])), unhexed("a0", 3).tolist()
    ('a0', [True, False, True])
    """
    return np.packbits(bits).tobytes().hex()


def unhexed(word: str, size: int) -> Bits:
    """What `hexed` said."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(word), np.uint8), count=size).astype(bool)


@dataclass(frozen=True, kw_only=True)
class Genomes:
    """The space of genomes of one network.

    Args:
        units: group to how many units it has.
        limits: prices and what the result may cost by them.
        min_kept: units that live in every group at least.
        round_to: units of a group live in multiples of this.
    """

    units: tuple[tuple[str, int], ...]
    limits: tuple[tuple[Pricing, float], ...] = ()
    min_kept: int = 1
    round_to: int = 1

    @cached_property
    def bounds(self) -> list[int]:
        """Where the stretch of each group begins, and the end."""
        return [0, *np.cumsum([units for _, units in self.units]).tolist()]

    @property
    def size(self) -> int:
        """How many bits."""
        return self.bounds[-1]

    def split(self, bits: Bits) -> dict[str, Bits]:
        """The stretch of each group."""
        return {
            name: bits[start:end] for (name, _), (start, end) in zip(self.units, pairwise(self.bounds), strict=True)
        }

    def joined(self, alive: Mapping[str, Sequence[bool] | Bits]) -> Bits:
        """The genome of these stretches."""
        return np.concatenate([np.asarray(alive[name], bool) for name, _ in self.units])

    def counts(self, bits: Bits) -> dict[str, int]:
        """How many units of each group live."""
        return {name: int(part.sum()) for name, part in self.split(bits).items()}

    def within(self, bits: Bits) -> bool:
        """Whether all limits are met."""
        return self._fits(self.counts(bits))

    def random(self, chance: np.random.Generator) -> Bits:
        """A genome in which each group has a density of its own, fitted."""
        parts = [chance.random(units) < chance.uniform(0.1, 1.0) for _, units in self.units]
        return self.fitted(np.concatenate(parts), chance)

    def fitted(self, bits: Bits, chance: np.random.Generator) -> Bits:
        """The genome with random units gone, or back, until widths and limits are kept.

        Raises:
            OverBudget: the smallest widths cost more than the limits allow.
        """
        found = bits.copy()
        for part in self.split(found).values():
            self._round_(part, chance)
        if not self.limits:
            return found
        if not self._fits(self.counts(found)):
            self._apply_(found, self._moves(found, chance, living=True), value=False)
        self._apply_(found, self._moves(found, chance, living=False), value=True)
        return found

    def _least(self, units: int) -> int:
        step = min(self.round_to, units)
        return min(units, max(step, -(-self.min_kept // step) * step))

    def _round_(self, part: Bits, chance: np.random.Generator) -> None:
        """Make the number of living units a multiple, the nearest one, and large enough; in place."""
        step, alive = min(self.round_to, len(part)), int(part.sum())
        wanted = max(self._least(len(part)), round(alive / step) * step)
        wanted = wanted if wanted <= len(part) else len(part)
        changing = chance.permutation(np.flatnonzero(part != (wanted > alive)))[: abs(wanted - alive)]
        part[changing] = wanted > alive

    def _moves(self, bits: Bits, chance: np.random.Generator, *, living: bool) -> list[npt.NDArray[np.intp]]:
        """Steps that take living units out, or bring dead ones back, in random order: places in the genome."""
        moves = []
        for start, end in pairwise(self.bounds):
            part = bits[start:end]
            step = min(self.round_to, end - start)
            places = chance.permutation(np.flatnonzero(part == living)) + start
            spare = int(part.sum()) - self._least(end - start) if living else len(places)
            moves += [places[k : k + step] for k in range(0, spare - step + 1, step)]
        return [moves[k] for k in chance.permutation(len(moves))]

    def _apply_(self, bits: Bits, moves: list[npt.NDArray[np.intp]], *, value: bool) -> None:
        """Take the fewest moves after which everything fits, or the most after which it still does; in place."""
        low, high = 0, len(moves)  # low moves: on the side where we are
        if not value and not self._fits(self._after(bits, moves, value=value)):
            raise OverBudget(
                f"even the smallest widths (min_kept={self.min_kept}, round_to={self.round_to}) cost more than the budget allows"
            )
        if value and self._fits(self._after(bits, moves, value=value)):
            low = high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._fits(self._after(bits, moves[:middle], value=value))
            low, high = (middle, high) if fits == value else (low, middle)
        taken = low if value else high
        for places in moves[:taken]:
            bits[places] = value
        for places in moves[taken : taken + _LAST_TRIES] if value else ():
            bits[places] = True
            if not self._fits(self.counts(bits)):
                bits[places] = False

    def _after(self, bits: Bits, moves: list[npt.NDArray[np.intp]], *, value: bool) -> dict[str, int]:
        changed = bits.copy()
        for places in moves:
            changed[places] = value
        return self.counts(changed)

    def _fits(self, counts: Mapping[str, int]) -> bool:
        return all(pricing(counts) <= limit * (1 + 1e-9) for pricing, limit in self.limits)
