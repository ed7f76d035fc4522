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
    """The upper Cholesky factor U of the inverse, ``H^-1 = U^T U``.

    With the order of columns turned round, ``H = L L^T`` turns into ``H = R R^T`` with an upper ``R``, and ``U = R^-1``: the inverse itself,
    which would have to be factored again, is never formed.
    """
    return _inverse(torch.linalg.cholesky(damped.flip(0, 1))).flip(0, 1)


def _inverse(lower: Tensor, base: int = 256) -> Tensor:
    """Of a lower triangle, by halves: a third of the work of solving for the identity."""
    if len(lower) <= base:
        eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        smallest: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
        return smallest
    one, two = slice(len(lower) // 2), slice(len(lower) // 2, None)
    found = torch.zeros_like(lower)
    found[one, one], found[two, two] = _inverse(lower[one, one], base), _inverse(lower[two, two], base)
    below = torch.linalg.solve_triangular(lower[two, two], lower[two, one], upper=False)
    found[two, one] = torch.linalg.solve_triangular(lower[one, one], below, upper=False, left=False).neg_()
    return found


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
        factor: `upper_factor` of ``damped``, where it is known already.
        on_block: called with the number of columns that are done.

    Returns:
        The new weights, the mask, and the predicted rise ``tr(D damped D^T)`` of the output error (exact for these steps).

    >>> w, mask, rise = column_obs(torch.tensor([[3.0, 1.0]]), torch.eye(2), ColumnChoice(count=1))
    >>> w.tolist(), mask.tolist(), rise
    ([[3.0, 0.0]], [[True, False]], 1.0)
    """
    u = upper_factor(damped) if factor is None else factor
    # [features, rows]: each column lies in one piece
    w = weight.t().to(u.dtype, copy=True, memory_format=torch.contiguous_format)
    mask = torch.ones_like(w, dtype=torch.bool)
    rows, features = weight.shape
    step = _step(block, choice)
    lost = w.new_zeros(())
    left = _asked(choice, rows, w.device)
    for start in range(0, features, step):
        stop = min(start + step, features)
        part, kept, inner = w[start:stop], mask[start:stop], u[start:stop, start:stop]
        scale = inner.diagonal().unsqueeze(1)
        if isinstance(choice, Tensor):
            kept.copy_(choice[:, start:stop].t())
        elif not choice.m:
            counts = _share(left, rows, features - start, stop - start, choice)
            kept.copy_(_keep((part / scale).square().t().contiguous(), counts, choice).t())
            left = left - counts
        errors = _leave(part, kept, inner, choice if isinstance(choice, ColumnChoice) else ColumnChoice())
        w[stop:].addmm_(u[start:stop, stop:].t(), errors, alpha=-1)
        part.masked_fill_(~kept, 0)
        lost += errors.square().sum()
        if on_block:
            on_block(stop)
    return w.t().to(weight.dtype).contiguous(), mask.t().contiguous(), float(lost)


def _leave(part: Tensor, kept: Tensor, inner: Tensor, choice: ColumnChoice) -> Tensor:
    """Column after column of a block leaves and moves those after it in ``part`` ``[columns, rows]``; what each step weighs, the same shape.

    Groups of N:M are chosen here, each when it is come to, and go into ``kept``.
    """
    errors = torch.empty_like(part)
    for j in range(len(part)):
        if choice.m and j % choice.m == 0:
            group = slice(j, j + choice.m)
            kept[group] = _best((part[group] / inner.diagonal()[group].unsqueeze(1)).t(), choice.n).t()
        torch.div(part[j].masked_fill(kept[j], 0), inner[j, j], out=errors[j])
        part[j:].addr_(inner[j, j:], errors[j], alpha=-1)
    return errors


def _step(block: int, choice: ColumnChoice | Tensor) -> int:
    """Whole groups and blocks in every step."""
    if isinstance(choice, Tensor):
        return block
    width = choice.m or choice.columns
    return max(block // width, 1) * width


def _asked(choice: ColumnChoice | Tensor, rows: int, device: torch.device) -> Tensor:
    """Weights to keep: in all, ``[1]``, or of every row, ``[rows]``."""
    if isinstance(choice, Tensor):
        return torch.zeros(1, dtype=torch.long)
    if not choice.per_row:
        return torch.tensor([choice.count])
    each, more = divmod(choice.count, rows)
    return each + (torch.arange(rows, device=device) < more).long()


def _share(left: Tensor, rows: int, columns_left: int, columns: int, choice: ColumnChoice) -> Tensor:
    """How many of the ``left`` weights these columns keep; what rounding takes from one block the next one gets."""
    size, rows = choice.rows * choice.columns, 1 if choice.per_row else rows
    counts = (left.double() / columns_left * columns / size).round().long() * size
    least = (left - rows * (columns_left - columns)).clamp_min(0)
    return counts.maximum(least).clamp_max(rows * columns).minimum(left)


def _keep(saliency: Tensor, counts: Tensor, choice: ColumnChoice) -> Tensor:
    rows, columns = saliency.shape
    if choice.per_row:
        best = saliency.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return best < counts.unsqueeze(1)
    count = int(counts)
    if choice.rows * choice.columns == 1:
        return chosen_by(saliency, count)
    r, c = choice.rows, choice.columns
    sums = saliency.reshape(rows // r, r, columns // c, c).sum((1, 3))
    return chosen_by(sums, count // (r * c)).repeat_interleave(r, 0).repeat_interleave(c, 1)


def _best(weights: Tensor, n: int) -> Tensor:
    """The ``n`` largest of each row; ties by index."""
    order = weights.square().argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(weights, dtype=torch.bool).scatter_(1, order[:, :n], True)
