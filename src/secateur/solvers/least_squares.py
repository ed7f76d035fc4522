"""Refit what is left of a layer, so that it computes what the whole layer did.

    min over W'  E || W x - W' x' ||^2        =>     W' = W  E[x x'^T]  ( E[x' x'^T] + damping * mean diagonal )^-1

x is what the layer took in before, x' what it takes in now: fewer features, and already a little off where earlier layers shrank.
"""

import torch
from torch import Tensor

__all__ = ["refit", "solve_right"]


def refit(weight: Tensor, cross: Tensor, gram: Tensor, *, damping: float = 1e-4) -> Tensor:
    """The weights ``[rows, kept]`` that do on x' what ``weight`` ``[rows, features]`` does on x.

    Args:
        weight: the layer as it was.
        cross: ``E[x x'^T]``, ``[features, kept]``.
        gram: ``E[x' x'^T]``, ``[kept, kept]``.
        damping: what is added to the diagonal of ``gram``, as a fraction of its mean; features that never fire stay solvable.

    >>> gram = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> refit(torch.tensor([[3.0, 5.0]]), gram[:, :1], gram[:1, :1], damping=0.0)  # independent features: the rest stays as it is
    tensor([[3.]])
    """
    return solve_right(weight.double() @ cross.double(), gram, damping=damping).to(weight.dtype)


def solve_right(right: Tensor, gram: Tensor, *, damping: float) -> Tensor:
    """``right @ (gram + damping * mean(diagonal) * I)^-1`` in float64; more damping is tried where that is not positive definite."""
    matrix = gram.double()
    mean = matrix.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix + damping * mean * eye)
        if not failed:
            return torch.cholesky_solve(right.double().t(), factor).t()
        damping = max(10 * damping, 1e-8)
