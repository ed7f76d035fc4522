"""The quadratic that every second-order method lives on: a layer's output error as a function of its weights.

    E(W') = 1/n sum_j || W x_j - W' x_j ||^2 = tr( (W - W') H (W - W')^T ),      H = 1/n sum_j x_j x_j^T

`W` is ``[rows, features]`` and all rows share ``H``. Where H is singular (dead inputs, fewer samples than features) it is damped:
``H + damping * mean(diag H) * I``; features that never fire get a one on the diagonal, so that they cost nothing and stay solvable.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from secateur.errors import BadCalibration

__all__ = ["Damped", "chosen_by", "damp", "inverse", "rise", "rows_of_rise"]


class Damped(NamedTuple):
    """A Hessian that can be inverted.

    Args:
        matrix: ``H + added * I``, with a one on the diagonal of dead features.
        dead: features that never fire, ``[features]`` bool.
        added: what stands on the diagonal beyond H, an absolute number.
    """

    matrix: Tensor
    dead: Tensor
    added: float


def damp(hessian: Tensor, damping: float, name: str = "the layer") -> Damped:
    """Make ``hessian`` positive definite: a fraction of its mean diagonal is added; ten times more until Cholesky succeeds.

    Args:
        hessian: ``[features, features]``, of any floating type, which is kept.
        damping: the fraction.
        name: for the message.

    Raises:
        BadCalibration: it holds NaN or infinite numbers.

    >>> damp(torch.diag(torch.tensor([2.0, 0.0])), 0.1).matrix.diagonal()
    tensor([2.2000, 1.0000])
    """
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(diagonal.sum())) or not bool(torch.isfinite(hessian.sum())):
        raise BadCalibration(f"the Hessian of {name} holds NaN or infinite numbers: look at the calibration data")
    dead = diagonal <= 0
    if damping < 0:
        raise BadCalibration(f"damping={damping} must not be negative; it is added to the diagonal of a Hessian")
    alive = int((~dead).sum())
    mean = float(diagonal.clamp_min(0).sum()) / max(alive, 1)
    while True:
        added = damping * mean
        matrix = hessian.clone()
        matrix.diagonal().add_(torch.where(dead, torch.ones_like(diagonal), torch.full_like(diagonal, added)))
        matrix[dead, :] = matrix[:, dead] = 0
        matrix.diagonal()[dead] = 1
        if not int(torch.linalg.cholesky_ex(matrix)[1]):
            return Damped(matrix, dead, added)
        damping = max(10 * damping, 1e-10 if hessian.dtype == torch.float64 else 1e-6)


def inverse(matrix: Tensor) -> Tensor:
    """The inverse of a positive definite matrix, by Cholesky."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def rise(delta: Tensor, hessian: Tensor) -> float:
    """``tr(delta H delta^T)``: the mean squared output error of a change of the weights, summed over rows.

    >>> rise(torch.tensor([[0.0, 2.0]]), torch.eye(2))
    4.0
    """
    return float(rows_of_rise(delta, hessian).sum())


def rows_of_rise(delta: Tensor, hessian: Tensor) -> Tensor:
    """The same for every row, ``[rows]``."""
    return ((delta @ hessian.to(delta.dtype)) * delta).sum(1)


def chosen_by(scores: Tensor, count: int) -> Tensor:
    """The ``count`` largest of a table as a bool table, exactly; ties by index."""
    flat = scores.reshape(-1)
    keep = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    if count >= flat.numel():
        return ~keep.view(scores.shape)
    if count > 0:
        cut = flat.kthvalue(flat.numel() - count + 1).values
        keep = flat > cut
        ties = (flat == cut).nonzero().squeeze(1)[: count - int(keep.sum())]
        keep[ties] = True
    return keep.view(scores.shape)
