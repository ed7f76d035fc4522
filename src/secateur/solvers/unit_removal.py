"""Greedy removal of whole features with exact repair: structured optimal brain surgery (OSSCAR; ZipLM; Hassibi & Stork 1992).

For outputs W x and H = E[x x^T], removing the features S and refitting the others at best costs

    cost(S) = tr( W_S ( (H^-1)_SS )^-1 W_S^T )

and leaves   W <- W - W_S ((H^-1)_SS)^-1 (H^-1)_S,   H^-1 <- H^-1 - (H^-1)_:S ((H^-1)_SS)^-1 (H^-1)_S: .
The cheapest unit leaves, both are brought up to date, and so on. Costs are rises of E || W x ||^2, so they add up along the way.
"""

import torch
from torch import Tensor

__all__ = ["removal_costs"]


def removal_costs(weight: Tensor, hessian: Tensor, units: int, *, damping: float = 1e-3) -> Tensor:
    """What each unit costs when its turn comes, ``[units]``: features leave greedily, the others are refitted each time.

    Args:
        weight: ``[rows, units * width]``: the features of a unit stand together.
        hessian: ``E[x x^T]``, ``[features, features]``.
        units: how many units the features form.
        damping: added to the diagonal, as a fraction of its mean.

    Returns:
        Rises of ``E || W x ||^2``, each at least that of the unit that left before it, so that cheaper means earlier.

    >>> removal_costs(torch.tensor([[1.0, 2.0]]), torch.eye(2), 2, damping=0.0)
    tensor([1., 4.], dtype=torch.float64)
    """
    w, width = weight.double().clone(), weight.shape[1] // units
    h = hessian.double()
    mean = h.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    inverse = torch.linalg.inv(h + damping * mean * torch.eye(len(h), dtype=torch.float64, device=h.device))
    costs = torch.zeros(units, dtype=torch.float64, device=w.device)
    alive = torch.ones(units, dtype=torch.bool, device=w.device)
    worst = torch.zeros((), dtype=torch.float64, device=w.device)
    for _ in range(units):
        blocks = _diagonal_blocks(inverse, units, width)
        pieces = w.reshape(len(w), units, width).transpose(0, 1)  # [units, rows, width]
        rises = _rises(pieces, blocks, alive)
        unit = int(rises.argmin())
        worst = torch.maximum(worst * (1 + 1e-6), rises[unit])  # never a tie: the order is kept in float32 too
        costs[unit], alive[unit] = worst, False
        here = slice(unit * width, (unit + 1) * width)
        step = torch.linalg.solve(inverse[here, here], inverse[here])  # [width, features]
        w -= w[:, here] @ step
        inverse = inverse - inverse[:, here] @ step
        w[:, here] = 0
        inverse[here], inverse[:, here] = 0, 0
        inverse[here, here] = torch.eye(
            width, dtype=torch.float64, device=w.device
        )  # keeps its block solvable; it is not alive
    return costs


def _diagonal_blocks(matrix: Tensor, units: int, width: int) -> Tensor:
    return matrix.reshape(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _rises(pieces: Tensor, blocks: Tensor, alive: Tensor) -> Tensor:
    """``tr(W_S B^-1 W_S^T)`` for every unit; infinite for those that left."""
    solved = torch.linalg.solve(blocks, pieces.transpose(1, 2))  # [units, width, rows]
    rises: Tensor = (pieces.transpose(1, 2) * solved).sum((1, 2))
    return rises.masked_fill(~alive, torch.inf)
