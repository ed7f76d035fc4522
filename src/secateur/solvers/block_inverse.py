"""Inverse of a block-diagonal empirical Fisher, block by block from its gradients (WoodFisher; Singh & Alistarh 2020, eq. 4 and section 3.1).

F = 1/n sum_k g_k g_k^T + damping I  on consecutive blocks of weights;    F^-1 by Woodbury, as in Hassibi & Stork's recursion
"""

import torch
from torch import Tensor

__all__ = ["block_inverse_diagonal", "block_removal"]


def _blocks(weights: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, weights)) for at in range(0, weights, size)]


def _inverse(g: Tensor, damping: float) -> Tensor:
    g = g.double()
    h = g.t() @ g / len(g)
    h.diagonal().add_(damping)
    return torch.cholesky_inverse(torch.linalg.cholesky(h))


def block_inverse_diagonal(rows: Tensor, size: int, damping: float) -> Tensor:
    """``diag F^-1``, ``[weights]``, from gradients ``[n, weights]``.

    >>> block_inverse_diagonal(torch.tensor([[1.0, 0.0]]), 2, 1.0)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    return torch.cat([_inverse(rows[:, block], damping).diagonal() for block in _blocks(rows.shape[1], size)])


def block_removal(w: Tensor, rows: Tensor, mask: Tensor, size: int, damping: float) -> Tensor:
    """Weights after all that ``mask`` removes left jointly, block by block: a linear solve, not a sum of single updates."""
    fresh = w.double().clone()
    for block in _blocks(len(w), size):
        gone = ~mask[block]
        if bool(gone.any()):
            inverse = _inverse(rows[:, block], damping)
            forces = torch.linalg.solve(inverse[gone][:, gone], w[block][gone].double())
            fresh[block] -= inverse[:, gone] @ forces
            fresh[block][gone] = 0
    return (fresh * mask).to(w.dtype)
