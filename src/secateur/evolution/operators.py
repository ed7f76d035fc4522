"""What happens to genomes between generations: roulette, crossover, mutation (Shu et al. 2019, section 3.3).

roulette     P(p) = fitness(p) / sum of all fitnesses                       fitness = 1 / objective, to the power of the pressure
crossover    two cuts at random; what lies between is swapped
mutation     "segment": a stretch of random place and length is flipped, as the authors' code does; "bit": each bit by itself
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from secateur.errors import UnknownName
from secateur.evolution.genomes import Bits

__all__ = ["crossed", "mutated", "roulette"]


def roulette(objectives: Sequence[float], chance: np.random.Generator, *, pressure: float = 1.0) -> int:
    """The place of an individual, drawn by fitness; objectives are to be small, and infinite ones are never drawn.

    >>> roulette([1.0, float("inf")], np.random.default_rng(0))
    0
    """
    values: npt.NDArray[np.float64] = np.asarray(objectives, np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return int(chance.integers(len(values)))
    least = max(float(values[finite].min()), 1e-300)
    fitness = np.where(finite, (least / np.maximum(np.where(finite, values, 1.0), least)) ** pressure, 0.0)
    return int(chance.choice(len(values), p=fitness / fitness.sum()))


def crossed(one: Bits, other: Bits, chance: np.random.Generator) -> tuple[Bits, Bits]:
    """Two children: the stretch between two random cuts is swapped."""
    start, end = sorted(chance.choice(len(one) + 1, 2, replace=False).tolist())
    first, second = one.copy(), other.copy()
    first[start:end], second[start:end] = other[start:end], one[start:end]
    return first, second


def mutated(bits: Bits, chance: np.random.Generator, *, form: str = "segment", extent: float = 0.1) -> Bits:
    """A flipped copy.

    Args:
        bits: the genome.
        chance: where randomness comes from.
        form: "segment" or "bit".
        extent: the longest segment as a part of the genome (the authors' code: 1), or the chance of each bit; one bit flips at least.

    Raises:
        UnknownName: there is no such form.
    """
    if form not in ("segment", "bit"):
        raise UnknownName(f"mutation={form!r} is neither 'segment' nor 'bit'")
    found, size = bits.copy(), len(bits)
    if form == "segment":
        length = int(chance.integers(1, max(1, round(extent * size)) + 1))
        start = int(chance.integers(size - length + 1))
        found[start : start + length] ^= True
        return found
    flips = chance.random(size) < extent
    flips[int(chance.integers(size))] = True
    return found ^ flips
