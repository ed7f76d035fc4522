"""One layer pruned by ADMM on its reconstruction error, without labels (Meng et al. 2024, "ALPS: Improved optimization for ... one-shot pruning").

    min over W of  1/2 tr((W - V) H (W - V)^T)  subject to  W in S             V: dense weights [rows, features], H = X X^T [features, features]

`secateur.solvers.admm_support` finds the support (eq. 3). On it, conjugate gradients then solve the least squares (eq. 9, all rows at
once): the error never rises.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.solvers.admm_support import admm_support
from secateur.solvers.support import refit_by_gradients

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
    kind = torch.promote_types(weights.dtype, torch.float32)  # of the steps; decomposed in double
    found = admm_support(dense, h, project, rho=rho, steps=iterations, still=0.0, kind=kind)
    cut, h, dense = found.weights, h.to(kind), dense.to(kind)
    fitted = refit_by_gradients(dense, h, found.mask, start=cut, steps=refit, tolerance=1e-7)
    whole = float((dense @ h * dense).sum()) or 1.0
    errors = [float(((x - dense) @ h * (x - dense)).sum()) / whole for x in (fitted, cut)]
    out = fitted.to(weights.dtype).masked_fill(~found.mask, 0)
    return LayerFit(out, found.mask, errors[0], errors[1], found.steps)
