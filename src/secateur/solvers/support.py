"""The best weights on a given support: exact least squares for every row, jointly over all that it keeps.

    min over w_S   (w_S - w)^T H (w_S - w)      =>      H_SS w_S = (H w)_S

Deleting weights one after another by optimal brain surgery with downdates ends at the same point: for a fixed set of removals the
joint solve is one linear system, with as many constraints as weights that are gone. Small layers are solved by
batches of Cholesky factors; large ones by conjugate gradients on all rows together, preconditioned with the diagonal.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.errors import BadCalibration

__all__ = ["refit_by_cholesky", "refit_by_gradients", "refit_on_support", "refits_on_support"]

_DIRECT = 3e9  # multiply-accumulates up to which factors are made
_DIRECT_AGAIN = 2e8  # the same for fits that start near their end
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
    if _effort(mask) <= _DIRECT:
        return refit_by_cholesky(weight, damped, mask)
    return refit_by_gradients(weight, damped, mask, start=start)


def refits_on_support(weight: Tensor, hessian: Tensor, mask: Tensor, added: Sequence[float]) -> Tensor:
    """The same for several numbers on the diagonal, from large to small, ``[added, rows, features]``: what costs is shared.

    Rows whose system is not positive definite are NaN.
    """
    if _effort(mask) <= _DIRECT_AGAIN:
        return _by_cholesky(weight, hessian, mask, added)
    fits = [weight * mask]
    for number in added:  # from where little moves: each fit starts at the one before
        matrix = hessian.clone()
        matrix.diagonal().add_(number)
        fits.append(refit_by_gradients(weight, matrix, mask, start=fits[-1]))
    return torch.stack(fits[1:])


def _effort(mask: Tensor) -> float:
    """Multiply-accumulates of all factors."""
    return float((mask.sum(1).double() ** 3).sum()) / 3


def refit_by_cholesky(weight: Tensor, damped: Tensor, mask: Tensor) -> Tensor:
    """The same, exactly, in float64.

    Raises:
        BadCalibration: ``damped`` is not positive definite.
    """
    fitted = _by_cholesky(weight, damped, mask, [0.0])[0]
    if bool(fitted.isnan().any()) and bool(weight.isfinite().all()):
        raise BadCalibration(
            "a least-squares fit has no unique solution: its Hessian is not positive definite; use more damping"
        )
    return fitted


def _by_cholesky(weight: Tensor, hessian: Tensor, mask: Tensor, added: Sequence[float]) -> Tensor:
    h, w = hessian.double(), weight.double()
    fitted = torch.zeros(len(added), *w.shape, dtype=w.dtype, device=w.device)
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
        fitted[:, chosen] = _solved(w[chosen], h, mask[chosen], counts[stop - 1], added)
        at = stop
    return fitted.to(weight.dtype)


def _solved(w: Tensor, h: Tensor, mask: Tensor, width: int, added: Sequence[float]) -> Tensor:
    """Solve rows of up to ``width`` survivors; shorter ones are filled up with ones on the diagonal."""
    fits = torch.zeros(len(added), *w.shape, dtype=h.dtype, device=h.device)
    if width == 0:
        return fits
    place = (~mask).byte().argsort(dim=1, stable=True)[:, :width]  # survivors first
    real = mask.gather(1, place)
    system = h[place.unsqueeze(2), place.unsqueeze(1)]
    diagonal = system.diagonal(dim1=1, dim2=2)
    if not bool(real.all()):
        system *= real.unsqueeze(2) & real.unsqueeze(1)
        diagonal += ~real
    b, own = (w @ h).gather(1, place), w.gather(1, place)
    before = 0.0
    for fit, number in zip(fits, added, strict=True):
        diagonal += number - before
        before = number
        factor, failed = torch.linalg.cholesky_ex(system)
        solved = torch.cholesky_solve((b + number * own).unsqueeze(2), factor).squeeze(2)
        fit.scatter_(1, place, (solved * real).masked_fill_((failed != 0).unsqueeze(1), torch.nan))
    return fits


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
