"""Greedy removal of whole features with exact repair: structured optimal brain surgery (OSSCAR; ZipLM; Hassibi & Stork 1992).

For outputs W x and H = E[x x^T], removing the features S and refitting the others at best costs

    cost(S) = tr( W_S ( (H^-1)_SS )^-1 W_S^T )

and leaves   W <- W - W_S ((H^-1)_SS)^-1 (H^-1)_S,   H^-1 <- H^-1 - (H^-1)_:S ((H^-1)_SS)^-1 (H^-1)_S: .
The cheapest unit leaves, both are brought up to date, and so on. Costs are rises of E || W x ||^2, so they add up along the way.

Work: one pass over H^-1 for a unit of those that are still there, n^3/3 for n units of one feature. The unit that leaves changes places
with the last one, so that what is left stays in one corner of the matrices and nothing is copied.
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
    worst = torch.zeros((), dtype=torch.float64, device=w.device)
    names = list(range(units))  # of the units in the corner, by place
    for left in range(units - 1, -1, -1):
        rises = _rises(w, inverse, width)
        place = int(rises.argmin())
        worst = torch.maximum(worst * (1 + 1e-6), rises[place])  # never a tie: the order is kept in float32 too
        costs[names[place]] = worst
        names[place] = names[left]
        out, rest = _to_the_end_(w, inverse, place, width), slice(left * width)
        step = torch.linalg.solve(inverse[out, out], inverse[out, rest])  # [width, features]
        w = w[:, rest].addmm_(w[:, out], step, alpha=-1)
        inverse = inverse[rest, rest].addmm_(inverse[rest, out], step, alpha=-1)
    return costs


def _to_the_end_(w: Tensor, inverse: Tensor, place: int, width: int) -> slice:
    """Let a unit and the last one change places; where the features of the last one stand."""
    here, last = slice(place * width, (place + 1) * width), slice(len(inverse) - width, len(inverse))
    for view in (w.t(), inverse, inverse.t()):
        kept = view[here].clone()
        view[here] = view[last]
        view[last] = kept
    return last


def _rises(w: Tensor, inverse: Tensor, width: int) -> Tensor:
    """``tr(W_S B^-1 W_S^T)`` for every unit, with ``B = (H^-1)_SS``."""
    if width == 1:
        return w.square().sum(0) / inverse.diagonal()
    units = len(inverse) // width
    pieces = w.view(len(w), units, width).transpose(0, 1)  # [units, rows, width]
    blocks = inverse.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    energy = pieces.transpose(1, 2) @ pieces  # [units, width, width]: the rows are many, so they are summed first
    rises: Tensor = torch.linalg.solve(blocks, energy).diagonal(dim1=1, dim2=2).sum(1)
    return rises
