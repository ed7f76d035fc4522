"""How far two sets of images are apart, by their features ``[n, d]``.

    Frechet   |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^1/2                         (Heusel et al. 2017, eq. 6)
    KID       MMD^2 with the kernel (x.y / d + 1)^3, unbiased                         (Binkowski et al. 2018, section 4)

With centred features X1, X2 divided by the root of n - 1, the last trace is the sum of the singular values of X1 X2^T, since
C1 = X1^T X1; so no root of a d x d matrix is taken, and there may be fewer images than features. The Frechet distance of finite sets
is too large, the more so the fewer images there are: compare only numbers for the same counts. KID is not, on average.
"""

import torch
from torch import Tensor

from secateur.errors import WrongModel

__all__ = ["frechet", "kid"]


def frechet(one: Tensor, other: Tensor) -> float:
    """The Frechet distance of two Gaussians with the means and covariances of the features; identical sets give 0.

    >>> frechet(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
    9.0
    """
    _check(one, other)
    a, b = one.double(), other.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    x, y = ((t - t.mean(0)) / (len(t) - 1) ** 0.5 for t in (a, b))
    traces = x.square().sum() + y.square().sum()
    return max(0.0, float(mean + traces - 2 * torch.linalg.svdvals(x @ y.t()).sum()))


def kid(one: Tensor, other: Tensor) -> float:
    """The squared maximum mean discrepancy, unbiased; about 0, or a little below, for sets of one distribution.

    Sets of the same size are taken as pairs (Gretton et al. 2012, eq. 4), so that identical sets give exactly 0.
    """
    _check(one, other)
    a, b = one.double(), other.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.t() / x.shape[1] + 1) ** 3

    def off(k: Tensor) -> Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    crossed = kernel(a, b)
    between = off(crossed) if len(a) == len(b) else crossed.mean()
    return float(off(kernel(a, a)) + off(kernel(b, b)) - 2 * between)


def _check(one: Tensor, other: Tensor) -> None:
    if one.dim() != 2 or other.dim() != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise WrongModel(
            f"features are [n, d] with n of 2 at least and the same d; these are {list(one.shape)} and {list(other.shape)}"
        )
