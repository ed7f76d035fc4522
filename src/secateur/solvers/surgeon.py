"""Optimal brain surgery on a whole network (Hassibi & Stork 1993; Hassibi, Stork & Wolff 1993).

    minimise 1/2 d^T H d  subject to  d_q = -w_q        =>      d = - w_q / [H^-1]_qq H^-1 e_q,      L_q = w_q^2 / (2 [H^-1]_qq)    (eqs. 5, 6)

Many weights Q at once are one linear system, never a sum of single steps:  d = - H^-1_:Q ([H^-1]_QQ)^-1 w_Q. A weight that is gone
leaves the problem: its row and column of the inverse are taken out by a rank-one downdate, so that no later step moves it.

The Hessian is that of squared error, or of any loss by factors: H = 1/P sum_k X_k X_k^T + alpha I. All functions take leading batch
dimensions, so that many networks can be pruned side by side; everything is float64.
"""

import torch
from torch import Tensor

from secateur.errors import WrongModel

__all__ = [
    "damping_for",
    "inverse_by_cholesky",
    "inverse_by_recursion",
    "refuse_many",
    "remove_",
    "remove_jointly",
    "saliencies",
    "take_out",
]

_BLOCK, _SHARE, _MOST = 64, 0.1, 20_000


def refuse_many(weights: int) -> None:
    """Refuse what has too many weights for one inverse.

    Raises:
        WrongModel: it has.
    """
    if weights > _MOST:
        raise WrongModel(
            f"{weights:,} weights need an inverse Hessian of {weights**2 * 8 / 1e9:,.1f} GB; above {_MOST:,} use 'block_fisher' or 'layer_obs'"
        )


def damping_for(rows: Tensor, samples: int) -> float:
    """A tenth of H's mean diagonal: an ``alpha`` that keeps steps short in directions that few samples tell of.

    >>> round(damping_for(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), 2), 6)
    0.25
    """
    mean = float(rows.square().sum(-2).mean()) / samples
    return _SHARE * mean if mean > 0 else 1e-6


def inverse_by_recursion(rows: Tensor, samples: int, alpha: float, *, block: int = _BLOCK) -> Tensor:
    """``(1/P sum_k X_k X_k^T + alpha I)^-1`` from the rows X_k, ``[..., rows, weights]``, without ever making H (eq. 10).

    Args:
        rows: X_k.
        samples: P.
        alpha: the start of the recursion is ``I / alpha``.
        block: rows that are taken in together (Woodbury); 1 is the paper's recursion.
    """
    x = rows.double()
    inverse = torch.eye(x.shape[-1], dtype=torch.float64, device=x.device).expand(*x.shape[:-2], -1, -1) / alpha
    for part in torch.split(x, block, dim=-2):
        moved = part @ inverse  # [..., block, weights]
        inner = moved @ part.mT
        inner = inner + samples * torch.eye(inner.shape[-1], dtype=inner.dtype, device=x.device)
        inverse = inverse - moved.mT @ torch.linalg.solve(inner, moved)
    return inverse


def inverse_by_cholesky(rows: Tensor, samples: int, alpha: float) -> Tensor:
    """The same by factoring H; faster where there are more rows than weights."""
    x = rows.double()
    h = x.mT @ x / samples
    h.diagonal(dim1=-2, dim2=-1).add_(alpha)
    return torch.cholesky_inverse(torch.linalg.cholesky(h))


def saliencies(weights: Tensor, inverse: Tensor, alive: Tensor) -> Tensor:
    """``L_q`` for every weight, ``[..., weights]``; infinite for those that are gone.

    >>> saliencies(torch.tensor([2.0, 1.0]), torch.eye(2, dtype=torch.float64), torch.tensor([True, True])).tolist()
    [2.0, 0.5]
    """
    found = weights.double().square() / (2 * inverse.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300))
    return found.masked_fill(~alive, torch.inf)


def remove_(weights: Tensor, inverse: Tensor, alive: Tensor, which: Tensor) -> None:
    """Remove one weight of each network in place: the rest moves, the inverse is brought down, the weight is gone for good.

    Args:
        weights: ``[..., weights]``, float64.
        inverse: ``[..., weights, weights]``.
        alive: bool, as ``weights``.
        which: ``[...]``, the index that leaves.
    """
    at = which.unsqueeze(-1)
    column = inverse.gather(-1, at.unsqueeze(-2).expand(*inverse.shape[:-1], 1)).squeeze(-1)
    pivot, own = column.gather(-1, at), weights.gather(-1, at)
    weights -= own / pivot * column
    inverse -= column.unsqueeze(-1) * column.unsqueeze(-2) / pivot.unsqueeze(-1)
    weights.scatter_(-1, at, 0)
    alive.scatter_(-1, at, torch.zeros_like(at, dtype=torch.bool))
    gone = torch.zeros_like(alive).scatter_(-1, at, torch.ones_like(at, dtype=torch.bool))
    inverse.masked_fill_(gone.unsqueeze(-1) | gone.unsqueeze(-2), 0)


def remove_jointly(weights: Tensor, inverse: Tensor, gone: Tensor) -> tuple[Tensor, float]:
    """Remove all of ``gone`` from one network at once; the new weights and the predicted rise of the loss.

    >>> h = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> left, rise = remove_jointly(torch.tensor([1.0, 4.0]), torch.linalg.inv(h), torch.tensor([True, False]))
    >>> left.tolist(), round(rise, 6)
    ([0.0, 4.5], 0.75)
    """
    w = weights.double()
    among = inverse[gone][:, gone]
    forces = torch.linalg.solve(among, w[gone])
    moved = w - inverse[:, gone] @ forces
    moved[gone] = 0
    return moved, float(w[gone] @ forces) / 2


def take_out(
    weights: Tensor, inverse: Tensor, alive: Tensor, chosen: Tensor, *, again: bool
) -> tuple[Tensor, float, Tensor]:
    """`remove_jointly` of the weights ``chosen``; where ``inverse`` is used ``again``, it is brought down in place.

    Returns:
        The new weights, the predicted rise, and which weights are alive now.
    """
    gone = torch.zeros_like(alive)
    gone[chosen] = True
    fresh, rise = remove_jointly(weights, inverse, gone)
    if again:
        scratch, left = weights.clone(), alive.clone()
        for which in chosen:
            remove_(scratch, inverse, left, which)
    alive = alive & ~gone
    return fresh * alive, rise, alive
