"""One layer pruned by ADMM on its reconstruction error, without labels (Meng et al. 2024, "ALPS: Improved optimization for ... one-shot pruning").

    min over W of  1/2 tr((W - V) H (W - V)^T)  subject to  W in S             V: dense weights [rows, features], H = X X^T [features, features]
    W <- (V H - U + rho D) (H + rho)^-1,   D <- Proj_S(W + U / rho),   U <- U + rho (W - D)                                  (eq. 3)

H is decomposed once, Q diag(l) Q^T, so every step divides by  l + rho  only, whatever rho has become. rho grows while the support still
moves. Inputs are scaled to unit energy first. On the support that is found, conjugate gradients then solve the least squares (eq. 9, all rows at
once): the error never rises.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LayerFit", "layer_admm"]


class LayerFit(NamedTuple):
    """A pruned layer.

    Args:
        weights: ``[rows, features]``, zero where ``mask`` says removed.
        mask: what stays.
        error: relative reconstruction error  tr((W - V) H (W - V)^T) / tr(V H V^T).
        before_refit: the same before the conjugate gradients.
        iterations: of ADMM.
    """

    weights: Tensor
    mask: Tensor
    error: float
    before_refit: float
    iterations: int


def layer_admm(
    weights: Tensor,
    gram: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    damping: float = 1e-2,
    rho: float = 0.1,
    iterations: int = 300,
    refit: int = 20,
) -> LayerFit:
    """Prune one layer.

    Args:
        weights: dense, ``[rows, features]``.
        gram: sum of ``x x^T`` over the calibration inputs, ``[features, features]``.
        project: from weights to the mask of the nearest allowed ones; the pattern is its business.
        damping: what is added to the diagonal of ``gram``, relative to its mean.
        rho: the first penalty, relative to inputs of unit energy.
        iterations: at most.
        refit: steps of conjugate gradients on the support; 0: none.

    >>> dense, gram = torch.tensor([[1.0, 0.1]]), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    >>> layer_admm(dense, gram, lambda w: w.abs() == w.abs().amax(1, keepdim=True), damping=0.0).weights
    tensor([[1.0900, 0.0000]])
    """
    dense, h = weights.detach().double(), gram.detach().double()
    h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype, device=h.device)
    size = h.diagonal().clamp(min=1e-30).sqrt()
    h, v = h / size[:, None] / size[None, :], dense * size
    values, basis = torch.linalg.eigh(h)
    kind = torch.promote_types(
        weights.dtype, torch.float32
    )  # decomposed in double; steps in what weights are in, at least float32
    values, basis, h, v = (part.to(kind) for part in (values.clamp(min=0), basis, h, v))
    target = v @ h
    d, u = v.clone(), torch.zeros_like(v)
    mask, used = torch.ones_like(v, dtype=torch.bool), 0
    before: Tensor | None = None
    for used in range(1, iterations + 1):
        w = ((target - u + rho * d) @ basis / (values + rho)) @ basis.t()
        shifted = w + u / rho
        mask = project(shifted)
        d = shifted.masked_fill(~mask, 0)
        u = u + rho * (w - d)
        if used % 3 == 0:
            changed = int((mask != before).sum()) if before is not None else mask.numel()
            if changed == 0 and used > 6:
                break
            rho *= _growth(changed, int(mask.sum()))
            before = mask
    cut = d
    fitted = _conjugate_gradients(cut, mask, h, target, refit) if refit else cut
    whole = float((v @ h * v).sum()) or 1.0
    errors = [float(((x - v) @ h * (x - v)).sum()) / whole for x in (fitted, cut)]
    out = (fitted / size.to(kind)).to(weights.dtype).masked_fill(~mask, 0)
    return LayerFit(out, mask, errors[0], errors[1], used)


def _growth(changed: int, kept: int) -> float:
    """How fast rho grows: the faster the more of the support still moves (their section 3.2)."""
    return 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1


def _conjugate_gradients(w: Tensor, mask: Tensor, h: Tensor, target: Tensor, steps: int) -> Tensor:
    """Least squares on the support, every row by itself, all at once; H has a diagonal of ones, so it needs no preconditioner."""
    residual = (target - w @ h) * mask
    direction, size = residual.clone(), residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        moved = (direction @ h) * mask
        curvature = (direction * moved).sum(1, keepdim=True)
        rate = torch.where(curvature > 0, size / curvature.clamp(min=1e-300), torch.zeros_like(size))
        w = w + rate * direction
        residual = residual - rate * moved
        fresh = residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(size > 0, fresh / size.clamp(min=1e-300), torch.zeros_like(size)) * direction
        size = fresh
    return w
