"""The best few weights for a quadratic that is known by gradients only: M-FAC's algebra, CHITA's problem (Frantar et al. 2021; Benbaki et al. 2023).

    minimise  Q(w) = 1/(2n) || G (w - w0) ||^2 + damping/2 || w - w0 ||^2     subject to     at most k weights are not zero

G holds n gradients as rows, ``[n, weights]``; the Hessian G^T G / n is never made. Supports are found by iterative hard thresholding with
momentum and a backtracking step (CHITA, section 3.1), weights on a support by one n x n system (Woodbury), which is exact:

    w_S = argmin:   (G_S^T G_S / n + damping I) d_S = G_S^T r / n + damping w0_S,   r = G w0
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["best_few", "loss_of", "solve_on_support"]


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
    project: Callable[[Tensor], Tensor],
    *,
    damping: float,
    start: Tensor | None = None,
    support: Tensor | None = None,
    steps: int = 60,
) -> tuple[Tensor, Tensor]:
    """Weights and support of small Q.

    Args:
        w0: dense weights, ``[weights]``.
        rows: gradients, ``[n, weights]``.
        project: for weights, what stays (bool): the largest that are allowed.
        damping: above 0.
        start: sparse weights to start from; None: the largest of ``w0``.
        support: where they may be other than zero, bool; None: where they are.
        steps: of thresholding at most.

    Returns:
        The weights, solved for jointly on their support, and the support.
    """
    n = len(rows)
    mask = support if support is not None else project(w0) if start is None else start != 0
    w = solve_on_support(w0, rows, mask, damping)
    best, best_mask, least = w, mask, loss_of(w, w0, rows, damping)
    size, before, momentum = n / float(rows.square().sum(1).max()) / 4, w, 1.0
    for _ in range(steps):
        ahead = w + (momentum - 1) / (momentum + 2) * (w - before)
        slope = rows.t() @ (rows @ (ahead - w0)) / n + damping * (ahead - w0)
        here = loss_of(ahead, w0, rows, damping)
        size *= 2
        for _ in range(30):
            trial = ahead - size * slope
            kept = project(trial)
            trial = trial * kept
            step = trial - ahead
            if (
                loss_of(trial, w0, rows, damping)
                <= here + float(slope @ step) + float(step @ step) / (2 * size) + 1e-12 * here
            ):
                break
            size /= 2
        before, w, momentum = w, trial, momentum + 1
        changed = int((kept ^ mask).sum())
        mask = kept
        if changed == 0 and momentum > 5:
            break
    fitted = solve_on_support(w0, rows, mask, damping)
    if loss_of(fitted, w0, rows, damping) < least:
        best, best_mask = fitted, mask
    return best, best_mask
