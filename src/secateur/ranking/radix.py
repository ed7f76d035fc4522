"""The k-th largest of any scores in bounded memory and linear time, whatever their distribution.

A radix search: floats are mapped to integers that sort alike; a histogram of their upper 16 bits finds the bin that holds the
k-th largest, one of the next 16 bits refines it. Two passes for float32, four for float64, no sort, no copy of the scores.
`secateur.ranking.bracketing` is several times faster on ordinary weights and hands over to this where it cannot answer.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from secateur.cuts import comparable
from secateur.units import Units

__all__ = ["search", "sort_keys"]

_DIGIT = 16
_HALF = 1 << (_DIGIT - 1)


def sort_keys(scores: Tensor) -> Tensor:
    """Integers that sort as the scores do; -0.0 and 0.0 are equal.

    >>> sort_keys(torch.tensor([-1.0, -0.0, 0.0, 1e-45, 2.0])).diff().sign().tolist()
    [1, 0, 1, 1]
    """
    if scores.dtype == torch.float64 or not scores.is_floating_point():
        bits = (scores.double() + 0.0).view(torch.int64)
        return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    bits = (scores.float() + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def search(units: Units, names: Iterable[str], keep: int, *, wide: bool) -> float:
    """The ``keep``-th largest score among ``names``; needs ``0 < keep <= total``."""
    names = list(names)
    digits, prefix, wanted = (4 if wide else 2), 0, keep
    for digit in range(digits):
        shift = _DIGIT * (digits - 1 - digit)
        histogram = torch.zeros(1 << _DIGIT, dtype=torch.int64)
        for name in names:
            for _, piece in units.pieces(name):
                histogram += _histogram(sort_keys(comparable(piece, wide)), prefix, shift, first=digit == 0)
        from_top = histogram.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, wanted))
        found = (1 << _DIGIT) - 1 - place
        wanted -= int(from_top[place] - histogram[found])
        prefix = found - _HALF if digit == 0 else (prefix << _DIGIT) | found
    return _score_of(prefix, wide=wide)


def _score_of(key: int, *, wide: bool) -> float:
    """Undo `sort_keys`."""
    integer, real, low_bits = (
        (torch.int64, torch.float64, 0x7FFFFFFFFFFFFFFF) if wide else (torch.int32, torch.float32, 0x7FFFFFFF)
    )
    return torch.tensor([key ^ low_bits if key < 0 else key], dtype=integer).view(real).item()


def _histogram(keys: Tensor, prefix: int, shift: int, *, first: bool) -> Tensor:
    digit = keys >> shift
    # The topmost digit holds the sign, which is made an offset; lower digits count only under the bin found before.
    digit = digit + _HALF if first else digit[(digit >> _DIGIT) == prefix] & (2 * _HALF - 1)
    return torch.bincount(digit, minlength=1 << _DIGIT).cpu()
