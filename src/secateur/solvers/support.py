"""The best weights on a given support: exact least squares for every row, jointly over all that it keeps.

    min over w_S   (w_S - w)^T H (w_S - w)      =>      H_SS w_S = (H w)_S

Deleting weights one after another by optimal brain surgery with downdates ends at the same point: for a fixed set of removals the
joint solve is one linear system, with as many constraints as weights that are gone. Small layers are solved by
batches of Cholesky factors; large ones by conjugate gradients on all rows together, with a preconditioner for each.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.linalg import vecdot

from secateur.errors import BadCalibration

__all__ = ["refit_by_cholesky", "refit_by_gradients", "refit_on_support", "refits_on_support"]

_DIRECT = 3e9  # multiply-accumulates up to which factors are made
_DIRECT_AGAIN = 2e8  # the same for fits that start near their end
_BATCH = 1 << 25  # numbers in a batch of factors
_RANK = 16  # directions that the preconditioner knows


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


def refits_on_support(
    weight: Tensor, hessian: Tensor, mask: Tensor, added: Sequence[float], *, tolerance: float = 1e-4
) -> Tensor:
    """The same for several numbers on the diagonal, from large to small, ``[added, rows, features]``: what costs is shared.

    Rows whose system is not positive definite are NaN. Where they are solved by iteration it ends at ``tolerance``.
    """
    if _effort(mask) <= _DIRECT_AGAIN:
        return _by_cholesky(weight, hessian, mask, added)
    fits = [weight * mask]
    for number in added:  # from where little moves: each fit starts at the one before
        matrix = hessian.clone()
        matrix.diagonal().add_(number)
        fits.append(refit_by_gradients(weight, matrix, mask, start=fits[-1], tolerance=tolerance))
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
        tolerance: of the residual's norm, scaled by the diagonal, against that of the right side.
    """
    h = damped
    scale = 1 / h.diagonal().clamp_min(1e-30)  # 0: an input that never comes
    keep = mask.to(h.dtype)
    w = weight.to(h.dtype)
    x = (w if start is None else start.to(h.dtype)) * keep
    right = (w @ h) * keep
    residual = right - (x @ h) * keep
    goal = tolerance**2 * (right * right * scale).sum(1).clamp_min(1e-30)
    precondition = _preconditioner(h, scale, keep)
    z = precondition(residual)
    direction, energy = z.clone(), vecdot(residual, z)
    for _ in range(steps):
        if bool((vecdot(residual * scale, residual) <= goal).all()):
            break
        moved = (direction @ h).mul_(keep)
        alpha = (energy / vecdot(direction, moved).clamp_min(1e-30)).unsqueeze(1)
        x.addcmul_(alpha, direction)
        residual.addcmul_(alpha, moved, value=-1)
        z = precondition(residual)
        fresh = vecdot(residual, z)
        direction.mul_((fresh / energy.clamp_min(1e-30)).unsqueeze(1)).add_(z)
        energy = fresh
    return x.to(weight.dtype)


def _preconditioner(h: Tensor, scale: Tensor, keep: Tensor) -> Callable[[Tensor], Tensor]:
    """About the inverse of each row's system: its diagonal, and the few directions in which inputs vary most.

    With the diagonal scaled to one, H ~ r I + F F^T for a narrow F, and on a row's support S, by Woodbury,

        (r I + F_S F_S^T)^-1 = ( I - F_S (r I + F_S^T F_S)^-1 F_S^T ) / r

    It takes about half the steps that the diagonal alone does.
    """
    if len(h) < 8 * _RANK:
        return scale.mul
    root = scale.sqrt()
    factor, rest = _leading(h * root * root.unsqueeze(1))
    small = (keep @ (factor.unsqueeze(2) * factor.unsqueeze(1)).flatten(1)).view(-1, _RANK, _RANK).double()
    small.diagonal(dim1=1, dim2=2).add_(rest)
    inner = torch.cholesky_inverse(torch.linalg.cholesky(small)).to(h.dtype)

    def precondition(residual: Tensor) -> Tensor:
        y = residual * root
        along = torch.bmm(inner, (y @ factor).unsqueeze(2)).squeeze(2)
        return y.sub_((along @ factor.t()).mul_(keep)).mul_(root / rest)

    return precondition


def _leading(h: Tensor) -> tuple[Tensor, float]:
    """``F`` ``[features, rank]`` and ``r`` with h ~ r I + F F^T, by subspace iteration."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(len(h), _RANK + 8, generator=generator, dtype=h.dtype).to(h.device)
    for _ in range(2):
        basis = torch.linalg.qr(h @ basis).Q
    values, vectors = torch.linalg.eigh(basis.t() @ (h @ basis))
    values, vectors = values[-_RANK:], basis @ vectors[:, -_RANK:]
    least = float(values[-1]) * max(100 * torch.finfo(h.dtype).eps, 1e-10)  # below that the difference is all rounding
    rest = max(float(h.trace() - values.sum()) / (len(h) - _RANK), least)
    return vectors * (values - rest).clamp_min(0).sqrt(), rest
