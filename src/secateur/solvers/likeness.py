"""How alike units are: how much of what one gives another could give in its place, known from weights alone.

As in the paper (Srinivas & Babu 2015, sections 3.3 and 3.4), with alpha = ||w||, u = w / alpha, c = b / alpha:

    ||eps_ij|| = ||u_i - u_j|| / ||u_i + u_j|| + |c_i - c_j| / |c_i + c_j|

Or as the expected difference of what they give, with f(z) = z above 0 and s z below, for inputs x ~ N(0, S):

    S = 1/2 I + 1/2 W^T W (inputs / ||W||^2),    p_ij = w_i S w_j + b_i b_j,    t = angle:  cos t = p_ij / sqrt(p_ii p_jj)
    k_ij = E f_i f_j = sqrt(p_ii p_jj) ( (1 - s)^2 J(t) + s cos t ),    J(t) = (sin t + (pi - t) cos t) / (2 pi)
    min over r  E (f_j - r f_i)^2 = k_jj (1 - rho^2),    rho = max(0, k_ij) / sqrt(k_ii k_jj)

(the arc-cosine kernel of Cho & Saul 2009, eq. 6, for s = 0). W^T W stands for the covariance of the inputs, since gradient descent adds
multiples of inputs to weights: what weights agree on is what inputs have in common. The other half stands for all that was not seen.
What a pooling by maxima makes of maps has a mean, too: then k_ij = sqrt(p_ii p_jj) (bend J(t) + slope cos t + level); see `Kernel`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RELU", "Kernel", "Likeness", "expected_likeness", "expected_products", "relative_likeness"]

_SAME = (
    1e-11  # squared relative distances below this are what float32 cannot tell from nothing once batch norm is folded
)
_FAR = 1e30  # in place of infinity: times an energy of zero it gives zero


class Kernel(NamedTuple):
    """``bend J(t) + slope cos t + level``: the mean product of what F makes of two inputs at an angle t."""

    bend: float = 1.0
    slope: float = 0.0
    level: float = 0.0

    @classmethod
    def bent(cls, slope: float) -> "Kernel":
        """F(z) = z above 0 and slope * z below: 0 for ReLU, 1 where there is no activation."""
        return cls((1 - slope) ** 2, slope)

    @classmethod
    def through(cls, same: float, apart: float, opposite: float) -> "Kernel":
        """The kernel with these mean products of equal, independent and opposite inputs, up to a factor.

        >>> [round(part, 6) for part in Kernel.through(1.0, 1 / math.pi, 0.0)]  # ReLU: J is 1/2, 1/(2 pi) and 0 there
        [2.0, 0.0, 0.0]
        >>> [round(part, 6) for part in Kernel.through(3.0, 0.0, -3.0)]
        [0.0, 1.0, 0.0]
        """
        if same <= 0:
            return cls.bent(1.0)
        bend = max(0.0, (1 + (opposite - 2 * apart) / same) / (0.5 - 1 / math.pi))
        level = max(apart / same, 0.0) - bend / (2 * math.pi)
        return cls(bend, max(1 - bend / 2 - level, -bend / 4), level)  # below that, no F has it

    def __call__(self, cosines: Tensor) -> Tensor:
        """By the cosines of the angles, for inputs of mean square 1."""
        sines = (1 - cosines.square()).clamp_(min=0).sqrt()
        half = (sines + (math.pi - cosines.acos()) * cosines) / (2 * math.pi)
        return self.bend * half + self.slope * cosines + self.level


RELU = Kernel.bent(0.0)


class Likeness(NamedTuple):
    """Units against units; ``[j, i]`` is about i in place of j.

    Args:
        sizes: alpha, ``[units]``: what a unit gives is alpha times what a unit of size 1 gives.
        apart: how wrong i is in place of j, squared, both at size 1.
        shares: how much of j, at size 1, i is best taken for; None for all of it.
    """

    sizes: Tensor
    apart: Tensor
    shares: Tensor | None = None


def relative_likeness(filters: Tensor, biases: Tensor | None = None, *, homogeneous: bool = True) -> Likeness:
    """As in the paper.

    Args:
        filters: ``[units, ...]``: what each unit does to its input.
        biases: ``[units, ...]``; None for none.
        homogeneous: f(c z) = c f(z) for c > 0, so that units may differ by a factor; otherwise all have size 1.

    >>> relative_likeness(torch.tensor([[3.0, 4.0], [8.0, 6.0]])).apart[0, 1]  # cos t = 0.96, so tan(t / 2)^2 = 0.04 / 1.96
    tensor(0.0204, dtype=torch.float64)
    """
    w, b = _rows(filters, biases)
    sizes = torch.ones(len(w), dtype=w.dtype)
    if homogeneous:
        sizes = w.norm(dim=1)
        sizes = torch.where(sizes > 0, sizes, b.norm(dim=1))  # a unit without weights is a constant
        unit = torch.where(sizes > 0, sizes, 1.0).unsqueeze(1)
        w, b = w / unit, b / unit
    apart = (_relative(w) + _relative(b)).square_().clamp_(max=_FAR)
    apart[(sizes > 0).unsqueeze(1) & (sizes == 0).unsqueeze(0)] = _FAR  # what gives nothing cannot take over
    return Likeness(sizes, apart)


def expected_likeness(
    filters: Tensor, biases: Tensor | None = None, *, homogeneous: bool = True, kernel: Kernel = RELU
) -> Likeness:
    """By expected differences.

    Args:
        filters: ``[units, ...]``: what each unit does to its input.
        biases: ``[units, ...]``; None for none. A bias counts as the weight of one more input.
        homogeneous: as for `relative_likeness`; where f is not, what units take in is compared.
        kernel: what is expected of two units at an angle; that of ReLU.
    """
    if not homogeneous:
        taken = _products_in(filters, biases)
        squares = taken.diagonal()
        both = squares.unsqueeze(1) + squares.unsqueeze(0)
        apart = (both - 2 * taken).clamp_(min=0)
        return Likeness(torch.ones(len(taken), dtype=taken.dtype), apart.where(apart > _SAME * both, 0.0))
    products = expected_products(filters, biases, kernel=kernel)
    sizes = products.diagonal().clamp(min=0).sqrt()
    unit = torch.where(sizes > 0, sizes, 1.0)
    shares = (products / unit.unsqueeze(1) / unit.unsqueeze(0)).clamp_(0, 1)
    apart = 1 - shares.square()
    return Likeness(sizes, apart.where(apart > _SAME, 0.0), shares)


def expected_products(filters: Tensor, biases: Tensor | None = None, *, kernel: Kernel = RELU) -> Tensor:
    """k_ij for all pairs.

    >>> expected_products(torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0]])).diagonal(1)
    tensor([0.6277, 0.6277], dtype=torch.float64)
    """
    taken = _products_in(filters, biases)
    sizes = taken.diagonal().clamp(min=0).sqrt()
    both = sizes.unsqueeze(1) * sizes.unsqueeze(0)
    cosines = torch.where(both > 0, taken / both, 0.0).clamp_(-1, 1).fill_diagonal_(1.0)
    return both * kernel(cosines)


def _products_in(filters: Tensor, biases: Tensor | None) -> Tensor:
    """p_ij: what units take in, on average over pairs of inputs."""
    w, b = _rows(filters, biases)
    plain = w @ w.t()
    size = plain.trace()
    if size > 0:
        plain = (plain + (w.shape[1] / size) * (plain @ plain)) / 2
    return plain + b @ b.t()


def _rows(filters: Tensor, biases: Tensor | None) -> tuple[Tensor, Tensor]:
    w = filters.detach().double().cpu().flatten(1)
    return w, w.new_zeros(len(w), 1) if biases is None else biases.detach().double().cpu().reshape(len(w), -1)


def _relative(rows: Tensor) -> Tensor:
    """||r_i - r_j|| / ||r_i + r_j||; 0 where both are 0, and very far where only the sum is."""
    products = rows @ rows.t()
    squares = products.diagonal()
    total = squares.unsqueeze(1) + squares.unsqueeze(0)
    apart, both = (total - 2 * products).clamp_(min=0), (total + 2 * products).clamp_(min=0)
    ratio = torch.where(apart <= 2 * _SAME * total, 0.0, apart / both)
    return ratio.clamp_(max=_FAR).sqrt_()
