"""Layer-wise optimal brain surgery column by column, for all rows at once (SparseGPT; Frantar & Alistarh 2023, algorithm 1).

Weights leave from the left to the right. When column j is decided, every row that loses its weight there moves the weights to the
right of it by the OBS step (Hassibi & Stork 1993, eq. 5), with the inverse Hessian of the columns from j on, which all rows share:

    W_{:, j:} <- W_{:, j:} - (W_j * gone_j) / U_jj * U_{j, j:} ,          U = upper Cholesky factor of H^-1
    cost of a removal = W_j^2 / (2 U_jj^2)

Masks are chosen for blocks of columns by that cost (``count`` is spread over the blocks evenly), or for every ``m`` columns, or are
given. The columns to the left never move again, which is what makes it fast, O(features^3 + rows * features^2), and not quite optimal;
a refit on the support (`secateur.solvers.support`) repairs that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from secateur.quadratic import chosen_by

__all__ = ["ColumnChoice", "column_obs", "upper_factor"]


@final
@dataclass(frozen=True, kw_only=True)
class ColumnChoice:
    """How many weights stay.

    Args:
        count: in the whole matrix, spread evenly over blocks of columns; with ``per_row`` evenly over rows too.
        n, m: of every ``m`` columns, ``n`` in every row.
        rows, columns: sides of blocks that leave whole; ``count`` counts weights.
    """

    count: int = 0
    per_row: bool = False
    n: int = 0
    m: int = 0
    rows: int = 1
    columns: int = 1


def upper_factor(damped: Tensor) -> Tensor:
    """The upper Cholesky factor U of the inverse, ``H^-1 = U^T U``."""
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return upper


def column_obs(
    weight: Tensor,
    damped: Tensor,
    choice: ColumnChoice | Tensor,
    *,
    block: int = 128,
    factor: Tensor | None = None,
    on_block: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Prune ``weight`` and let the rest make up for it.

    Args:
        weight: ``[rows, features]``.
        damped: a positive definite Hessian, ``[features, features]``.
        choice: how much stays, or a mask that says what stays (bool, True = kept).
        block: columns that are decided together.
        factor: `upper_factor` of ``damped``, if it is there already.
        on_block: called with the number of columns that are done.

    Returns:
        The new weights, the mask, and the predicted rise ``tr(D damped D^T)`` of the output error (exact for these steps).

    >>> w, mask, rise = column_obs(torch.tensor([[3.0, 1.0]]), torch.eye(2), ColumnChoice(count=1))
    >>> w.tolist(), mask.tolist(), rise
    ([[3.0, 0.0]], [[True, False]], 1.0)
    """
    u = upper_factor(damped) if factor is None else factor
    w = weight.to(u.dtype, copy=True)
    rows, features = w.shape
    step = _step(block, choice)
    groups = choice if isinstance(choice, ColumnChoice) and choice.m else None
    mask = torch.ones(rows, features, dtype=torch.bool, device=w.device)
    lost = w.new_zeros(())
    left = choice.count if isinstance(choice, ColumnChoice) else 0
    for start in range(0, features, step):
        stop = min(start + step, features)
        inner, scale = u[start:stop, start:stop], u.diagonal()[start:stop]
        part, errors = w[:, start:stop].clone(), w.new_zeros(rows, stop - start)
        if isinstance(choice, Tensor):
            kept = choice[:, start:stop].clone()
        elif not groups:
            count = _share(left, rows, features - start, stop - start, choice)
            kept = _keep((part / scale).square(), count, choice)
            left -= int(kept.sum())
        else:
            kept = torch.ones_like(part, dtype=torch.bool)  # said group by group, below
        for j in range(stop - start):
            if groups and j % groups.m == 0:
                group = slice(j, j + groups.m)
                kept[:, group] = _best(part[:, group] / scale[group], groups.n)
            error = torch.where(kept[:, j], 0.0, part[:, j]) / inner[j, j]
            part[:, j:] -= error.unsqueeze(1) * inner[j, j:]
            errors[:, j] = error
        w[:, start:stop] = part.masked_fill(~kept, 0)
        mask[:, start:stop] = kept
        w[:, stop:] -= errors @ u[start:stop, stop:]
        lost += errors.square().sum()
        if on_block:
            on_block(stop)
    return w.to(weight.dtype), mask, float(lost)


def _step(block: int, choice: ColumnChoice | Tensor) -> int:
    """Whole groups and blocks in every step."""
    if isinstance(choice, Tensor):
        return block
    width = choice.m or choice.columns
    return max(block // width, 1) * width


def _share(left: int, rows: int, columns_left: int, columns: int, choice: ColumnChoice) -> int:
    """How many of the ``left`` weights these columns keep; what rounding takes from one block the next one gets."""
    size = choice.rows * choice.columns
    count = round(left / columns_left * columns / size) * size
    return min(max(count, left - rows * (columns_left - columns)), rows * columns, left)


def _keep(saliency: Tensor, count: int, choice: ColumnChoice) -> Tensor:
    rows, columns = saliency.shape
    if choice.per_row:
        each, more = divmod(count, rows)
        best = saliency.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        counts = each + (torch.arange(rows, device=saliency.device) < more).long()
        return best < counts.unsqueeze(1)
    if choice.rows * choice.columns == 1:
        return chosen_by(saliency, count)
    r, c = choice.rows, choice.columns
    sums = saliency.reshape(rows // r, r, columns // c, c).sum((1, 3))
    return chosen_by(sums, count // (r * c)).repeat_interleave(r, 0).repeat_interleave(c, 1)


def _best(weights: Tensor, n: int) -> Tensor:
    """The ``n`` largest of each row; ties by index."""
    order = weights.square().argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(weights, dtype=torch.bool).scatter_(1, order[:, :n], True)
