"""A better support by splitting (ALPS; Meng et al. 2024, algorithm 1; ADMM of Boyd et al. 2011, section 9.1).

    minimise  tr( (W - W0) H (W - W0)^T )   subject to   W = D,  D on an allowed support

    W <- (W0 H + rho D - V) (H + rho I)^-1,    D <- best allowed part of W + V / rho,    V <- V + rho (W - D)

H is scaled to a unit diagonal first, so that sizes of weights say what they cost. One eigendecomposition serves every rho. rho grows
faster while the support still changes much; when the support has come to rest, the weights on it are solved for jointly elsewhere
(`secateur.solvers.support`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["admm_support"]

_CHECK = 3  # steps between looks at the support


def admm_support(
    weight: Tensor,
    damped: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    start: Tensor | None = None,
    rho: float = 0.1,
    steps: int = 120,
    still: float = 2e-4,
) -> Tensor:
    """A support for ``weight``, bool ``[rows, features]``.

    Args:
        weight: what is to be imitated, ``[rows, features]``.
        damped: a positive definite Hessian.
        project: for weights in units of their own output (squares are additive), what stays: the largest that the pattern allows.
        start: weights to start from, e.g. those of `column_obs`; None: ``weight``.
        rho: at the start, in units of the Hessian's diagonal.
        steps: at most.
        still: the fraction of the support that may still change per look when all is said to have come to rest.

    >>> h = torch.eye(3)
    >>> admm_support(torch.tensor([[3.0, 1.0, 2.0]]), h, lambda w: w.abs() >= w.abs().max())
    tensor([[ True, False, False]])
    """
    scale = damped.diagonal().sqrt()
    h = damped / scale / scale.unsqueeze(1)
    values, vectors = torch.linalg.eigh(h)
    values = values.clamp_min(0)
    w0 = weight.to(h.dtype) * scale
    target = (w0 @ vectors) * values  # W0 H, in the eigenbasis
    d = w0 if start is None else start.to(h.dtype) * scale
    mask = project(d)
    d = d * mask
    v = torch.zeros_like(d)
    kept = max(int(mask.sum()), 1)
    for step in range(1, steps + 1):
        w = ((target + (rho * d - v) @ vectors) / (values + rho)) @ vectors.mT
        shifted = w + v / rho
        fresh = project(shifted)
        d = shifted * fresh
        v += rho * (w - d)
        if step % _CHECK == 0:
            changed = int((fresh ^ mask).sum()) / kept
            mask = fresh
            if changed <= still and step > _CHECK:
                break
            rho *= 1.3 if changed >= 0.1 else 1.2 if changed >= 0.005 else 1.1
    return mask
