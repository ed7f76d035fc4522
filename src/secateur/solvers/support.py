"""The best weights on a given support: exact least squares for every row, jointly over all that it keeps.

    min over w_S   (w_S - w)^T H (w_S - w)      =>      H_SS w_S = (H w)_S

Deleting weights one after another by optimal brain surgery with downdates ends at the same point: for a fixed set of removals the
joint solve is one linear system, with as many constraints as weights that are gone. Small layers are solved by
batches of Cholesky factors; large ones by conjugate gradients on all rows together, preconditioned with the diagonal.
"""

import torch
from torch import Tensor

__all__ = ["refit_by_cholesky", "refit_by_gradients", "refit_on_support"]

_DIRECT = 3e9  # multiply-accumulates up to which factors are made
_BATCH = 1 << 25  # numbers in a batch of factors


def refit_on_support(weight: Tensor, damped: Tensor, mask: Tensor, *, start: Tensor | None = None) -> Tensor:
    """The weights ``[rows, features]`` on ``mask`` whose outputs are nearest to those of ``weight``.

    Args:
        weight: what is to be imitated, ``[rows, features]``, dense.
        damped: a positive definite Hessian.
        mask: what stays, bool.
        start: weights to start from where the system is solved by iteration.

    >>> h = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    >>> refit_on_support(torch.tensor([[2.0, 1.0]]), h, torch.tensor([[True, False]]))
    tensor([[2.5000, 0.0000]])
    """
    kept = mask.sum(1).double()
    if float((kept**3).sum()) / 3 <= _DIRECT:
        return refit_by_cholesky(weight, damped, mask)
    return refit_by_gradients(weight, damped, mask, start=start)


def refit_by_cholesky(weight: Tensor, damped: Tensor, mask: Tensor) -> Tensor:
    """The same, exactly, in float64."""
    h, w = damped.double(), weight.double()
    right = w @ h
    fitted = torch.zeros_like(w)
    order = mask.sum(1).argsort()
    at = 0
    counts = mask.sum(1)[order].tolist()
    while at < len(order):
        stop = at + 1  # rows of like size go together; the widest of a batch comes last
        while (
            stop < len(order) and (stop + 1 - at) * counts[stop] ** 2 <= _BATCH and counts[stop] <= 1.1 * counts[at] + 8
        ):
            stop += 1
        chosen = order[at:stop]
        fitted[chosen] = _solved(right[chosen], h, mask[chosen], counts[stop - 1])
        at = stop
    return fitted.to(weight.dtype)


def _solved(right: Tensor, h: Tensor, mask: Tensor, width: int) -> Tensor:
    """Solve rows of up to ``width`` survivors; shorter ones are filled up with ones on the diagonal."""
    if width == 0:
        return torch.zeros_like(right)
    place = (~mask).long().argsort(dim=1, stable=True)[:, :width]  # survivors first
    real = mask.gather(1, place)
    system = h[place.unsqueeze(2), place.unsqueeze(1)]
    system = system * (real.unsqueeze(2) & real.unsqueeze(1)) + torch.diag_embed((~real).double())
    b = right.gather(1, place) * real
    solved = torch.cholesky_solve(b.unsqueeze(2), torch.linalg.cholesky(system)).squeeze(2)
    return torch.zeros_like(right).scatter_(1, place, solved * real)


def refit_by_gradients(
    weight: Tensor,
    damped: Tensor,
    mask: Tensor,
    *,
    start: Tensor | None = None,
    steps: int = 200,
    tolerance: float = 1e-4,
) -> Tensor:
    """The same by preconditioned conjugate gradients, in the type of ``damped``, until every row's residual fell by ``tolerance``.

    Args:
        weight: as in `refit_on_support`.
        damped: likewise.
        mask: likewise.
        start: likewise.
        steps: at most.
        tolerance: of the preconditioned residual's norm, against that of the right side.
    """
    h = damped
    scale = 1 / h.diagonal().clamp_min(1e-30)  # 0: an input that never comes
    keep = mask.to(h.dtype)
    w = weight.to(h.dtype)
    x = (w if start is None else start.to(h.dtype)) * keep
    right = (w @ h) * keep
    residual = right - (x @ h) * keep
    goal = tolerance**2 * (right * right * scale).sum(1).clamp_min(1e-30)
    z = residual * scale
    direction, energy = z, (residual * z).sum(1)
    for _ in range(steps):
        if bool((energy <= goal).all()):
            break
        moved = (direction @ h) * keep
        alpha = energy / (direction * moved).sum(1).clamp_min(1e-30)
        x = x + alpha.unsqueeze(1) * direction
        residual = residual - alpha.unsqueeze(1) * moved
        z = residual * scale
        fresh = (residual * z).sum(1)
        direction = z + (fresh / energy.clamp_min(1e-30)).unsqueeze(1) * direction
        energy = fresh
    return x.to(weight.dtype)
