"""A cut: the score that separates what stays from what leaves, with the ties at it counted."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

__all__ = ["Cut", "comparable", "is_wide"]


def is_wide(piece: Tensor) -> bool:
    """Whether these scores need float64 to be compared exactly (32 bits hold float16 and bfloat16 too)."""
    return piece.element_size() > 4 or not piece.is_floating_point()


def comparable(piece: Tensor, wide: bool) -> Tensor:
    """The scores in the precision in which all of them are exact; no copy where they have it already."""
    return piece.double() if wide else piece.float()


@final
@dataclass(frozen=True)
class Cut:
    """Keep everything above ``value`` and the first ``ties`` of the ``equal`` units that score exactly ``value``.

    Args:
        wide: compare in float64 instead of float32.
    """

    value: float
    ties: int
    equal: int
    wide: bool = False

    def keep(self, piece: Tensor, ties_left: int) -> tuple[Tensor, int]:
        """Decide for one piece of scores; returns the decisions and how many ties may still be kept.

        >>> import torch
        >>> Cut(value=1.0, ties=1, equal=2).keep(torch.tensor([1.0, 0.5, 1.0, 2.0]), 1)
        (tensor([ True, False, False,  True]), 0)
        """
        scores = comparable(piece, self.wide)
        if self.ties == self.equal:  # all of them stay, as almost always with real weights: no need to look for them
            return scores >= self.value, ties_left
        kept = scores > self.value
        if ties_left:
            equal = (scores == self.value).nonzero().squeeze(1)[:ties_left]
            kept[equal] = True
            ties_left -= equal.numel()
        return kept, ties_left
