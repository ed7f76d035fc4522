"""A better support by splitting (ALPS; Meng et al. 2024, algorithm 1; ADMM of Boyd et al. 2011, section 9.1).

    minimise  tr( (W - W0) H (W - W0)^T )   subject to   W = D,  D on an allowed support

    W <- (W0 H + rho D - V) (H + rho I)^-1,    D <- best allowed part of W + V / rho,    V <- V + rho (W - D)

H is scaled to a unit diagonal first, so that sizes of weights say what they cost. One eigendecomposition serves every rho. rho grows
faster while the support still changes much; when the support has come to rest, the weights on it are solved for jointly elsewhere
(`secateur.solvers.support`).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Split", "admm_support"]

_CHECK = 3  # steps between looks at the support


class Split(NamedTuple):
    """What splitting ends with.

    Args:
        mask: the support, bool ``[rows, features]``.
        weights: D, zero off the support; not yet the best ones on it.
        steps: how many were taken.
    """

    mask: Tensor
    weights: Tensor
    steps: int


def admm_support(
    weight: Tensor,
    damped: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    start: Tensor | None = None,
    rho: float = 0.1,
    steps: int = 120,
    still: float = 2e-4,
    kind: torch.dtype | None = None,
) -> Split:
    """A support for ``weight``.

    Args:
        weight: what is to be imitated, ``[rows, features]``.
        damped: a positive definite Hessian.
        project: for weights in units of their own output (squares are additive), what stays: the largest that the pattern allows.
        start: allowed weights to start from, e.g. those of `column_obs`; None: ``weight``.
        rho: at the start, in units of the Hessian's diagonal.
        steps: at most.
        still: the fraction of the support that may still change per look when all is said to have come to rest.
        kind: what steps are taken in, once ``damped`` is decomposed in its own type; None: in that.

    >>> h = torch.eye(3)
    >>> admm_support(torch.tensor([[3.0, 1.0, 2.0]]), h, lambda w: w.abs() >= w.abs().max()).mask
    tensor([[ True, False, False]])
    """
    scale = damped.diagonal().clamp(min=1e-30).sqrt()
    values, vectors = torch.linalg.eigh(damped / scale / scale.unsqueeze(1))
    kind = kind or damped.dtype
    values, vectors, scale = values.clamp_min(0).to(kind), vectors.to(kind), scale.to(kind)
    w0 = weight.to(kind) * scale
    target = (w0 @ vectors) * values  # W0 H, in the eigenbasis
    d = w0 if start is None else start.to(kind) * scale
    mask = torch.ones_like(d, dtype=torch.bool) if start is None else project(d)
    d, v, step = d * mask, torch.zeros_like(d), 0
    fresh = mask
    for step in range(1, steps + 1):
        w = ((target + (rho * d - v) @ vectors) / (values + rho)) @ vectors.mT
        shifted = w + v / rho
        fresh = project(shifted)
        d = shifted * fresh
        v += rho * (w - d)
        if step % _CHECK == 0:
            changed = int((fresh ^ mask).sum()) / max(int(fresh.sum()), 1)
            mask = fresh
            if changed <= still and step > 2 * _CHECK:
                break
            rho *= 1.3 if changed >= 0.1 else 1.2 if changed >= 0.005 else 1.1
    return Split(fresh, d / scale, step)
