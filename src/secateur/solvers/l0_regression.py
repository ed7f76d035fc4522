"""The best few weights for a quadratic that is known by gradients only: M-FAC's algebra, CHITA's problem (Frantar et al. 2021; Benbaki et al. 2023).

    minimise  Q(w) = 1/(2n) || G (w - w0) ||^2 + damping/2 || w - w0 ||^2     subject to     at most k weights are not zero

G holds n gradients as rows, ``[n, weights]``; the Hessian H = G^T G / n + damping I is never made. Weights on a support S are found by one
n x n system (Woodbury), which is exact:

    w_S = argmin:   (G_S^T G_S / n + damping I) d_S = G_S^T r / n + damping w0_S,   r = G w0

The support is searched by exchange, as in CBS (Yu et al. 2022): what would cost least leaves for what would help most, many pairs at
once, and fewer where their sum does not hold what it promised. With c the slope of Q at w and the same n x n system,

    t_q = g_q^T (G_S G_S^T / n + damping I)^-1 g_q / n
    leaving S costs   w_q^2 damping / (2 (1 - t_q))  (q in S),      joining it saves   c_q^2 / (2 damping (1 + t_q))  (q outside)

Hard thresholding along the slope, CHITA's own search, never left the support that it began with on the networks it was tried on.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["best_few", "loss_of", "solve_on_support"]

_COLUMNS = 8192  # weights at a time, so that all gradients are not copied
_LITTLE = 1e-3  # of Q: an exchange that gains less is the last


def loss_of(w: Tensor, w0: Tensor, rows: Tensor, damping: float) -> float:
    """Q(w)."""
    d = w - w0
    return float((rows @ d).square().sum() / (2 * len(rows)) + damping / 2 * d.square().sum())


def solve_on_support(w0: Tensor, rows: Tensor, mask: Tensor, damping: float) -> Tensor:
    """The weights on ``mask`` with least Q, jointly; all others are zero.

    Args:
        w0: dense weights, ``[weights]``.
        rows: gradients, ``[n, weights]``.
        mask: what stays, bool.
        damping: above 0.

    >>> w = solve_on_support(torch.tensor([2.0, 1.0]), torch.tensor([[1.0, 1.0]]), torch.tensor([True, False]), 1e-6)
    >>> [round(float(v), 3) for v in w]
    [3.0, 0.0]
    """
    n, g = len(rows), rows[:, mask]
    lost = rows[:, ~mask] @ w0[~mask]  # what the others gave: it is to be made up for
    system = (g @ g.t()).double() / n
    system.diagonal().add_(damping)
    dual = torch.linalg.solve(system, lost.double() / n).to(w0.dtype)
    w = torch.zeros_like(w0)
    w[mask] = w0[mask] + g.t() @ dual
    return w


def best_few(
    w0: Tensor,
    rows: Tensor,
    choose: Callable[[Tensor], Tensor],
    *,
    support: Tensor,
    damping: float,
    steps: int = 20,
) -> tuple[Tensor, Tensor]:
    """Weights and support of small Q.

    Args:
        w0: dense weights, ``[weights]``.
        rows: gradients, ``[n, weights]``.
        choose: for numbers, one for each weight, what stays (bool): where they are largest, as many as are allowed.
        support: where the weights may be other than zero at the start, bool.
        damping: above 0.
        steps: exchanges at most.

    Returns:
        The weights, solved for jointly on their support, and the support; Q never rises on the way.

    >>> rows, w0 = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([1.0, 0.9])
    >>> best_few(w0, rows, lambda v: v >= v.max(), support=w0 >= w0.max(), damping=1e-3)[1]  # the second is smaller and does more
    tensor([False,  True])
    """
    w = solve_on_support(w0, rows, support, damping)
    loss, share = loss_of(w, w0, rows, damping), 1.0
    for _ in range(steps):
        worth = _worth(w, w0, rows, support, damping)
        joining = choose(worth) & ~support
        joining = joining.nonzero().squeeze(1)
        joining = joining[worth[joining].argsort(descending=True)]
        count, before = math.ceil(share * len(joining)), loss
        while count:
            limited = worth * support
            limited[joining[:count]] = worth[joining[:count]]
            trial = choose(limited)
            there = solve_on_support(w0, rows, trial, damping)
            reached = loss_of(there, w0, rows, damping)
            if reached < loss:
                w, support, loss = there, trial, reached
                break
            count //= 4
        if not len(joining) or loss > (1 - _LITTLE) * before:
            break
        share = min(1.0, 2 * count / len(joining))
    return w, support


def _worth(w: Tensor, w0: Tensor, rows: Tensor, support: Tensor, damping: float) -> Tensor:
    """What Q would rise by without a weight of the support, and fall by with one of the others."""
    n, inside = len(rows), rows[:, support]
    system = (inside @ inside.t()).double() / n
    system.diagonal().add_(damping)
    inverse = torch.linalg.inv(system).to(rows.dtype)
    within = torch.cat([((inverse @ part) * part).sum(0) for part in torch.split(rows, _COLUMNS, 1)]) / n  # t
    slope = rows.t() @ (rows @ (w - w0)) / n + damping * (w - w0)
    rises = w.square() * damping / (2 * (1 - within).clamp(min=torch.finfo(w.dtype).eps))
    return torch.where(support, rises, slope.square() / (2 * damping * (1 + within)))
