"""Projection onto equally spaced levels: each weight to the nearest of q * {-m, ..., -1, 0, 1, ..., m}, the spacing fitted.

    min over q of  sum (w - q * n)^2,   n = round(w / q) within [-m, m];        for fixed n:  q = sum(w n) / sum(n^2)

The two steps alternate, from several starts, each lowering the error (ADMM-NN, Ren et al. 2019, section 3.3, searches q instead). For a fixed q
what is gained by keeping a weight rises with its size, so "the largest stay, then to the nearest level" is the exact joint projection.
"""

import torch
from torch import Tensor

from secateur.errors import BadSparsity

__all__ = ["check_bits", "fitted_spacing", "to_levels"]

_STARTS = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2)
_ROUNDS = 12


def check_bits(bits: int | None) -> None:
    """Refuse a number of bits that leaves no level.

    Raises:
        BadSparsity: not in 2 .. 16.
    """
    if bits is not None and not 2 <= bits <= 16:
        raise BadSparsity(
            f"bits={bits} must be 2 (levels -q, 0, q) to 16: the levels are q * {{-m..m}}, m = 2^(bits-1) - 1"
        )


def fitted_spacing(weights: Tensor, bits: int) -> float:
    """The distance q between levels that fits the non-zero ``weights`` best; 0 where there are none.

    >>> fitted_spacing(torch.tensor([0.5, -1.0, 1.5, 0.0]), bits=3)
    0.5
    """
    values = weights.detach().double().flatten()
    values, most = values[values != 0], 2 ** (bits - 1) - 1
    if not len(values):
        return 0.0
    top, best, least = float(values.abs().max()), 0.0, float("inf")
    for start in _STARTS:
        q = top * start / most
        for _ in range(_ROUNDS):
            n = (values / q).round().clamp(-most, most)
            if not bool(n.any()):
                break
            q = float((values * n).sum() / n.square().sum())
        n = (values / q).round().clamp(-most, most)
        error = float((values - q * n).square().sum())
        if error < least:
            best, least = q, error
    return best


def to_levels(weights: Tensor, bits: int, spacing: float | None = None) -> Tensor:
    """Each weight at its nearest level; zeros stay zeros.

    >>> to_levels(torch.tensor([0.52, -1.01, 0.0]), bits=3, spacing=0.5)
    tensor([ 0.5000, -1.0000,  0.0000])
    """
    q = fitted_spacing(weights, bits) if spacing is None else spacing
    if q == 0:
        return torch.zeros_like(weights)
    most = 2 ** (bits - 1) - 1
    return ((weights / q).round().clamp(-most, most) * q).to(weights.dtype)
