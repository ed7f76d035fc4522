"""Exact greedy optimal brain surgery, row by row (OBC; Frantar & Alistarh 2022, algorithm 1; Hassibi & Stork 1993, eqs. 5 and 6).

Every row of a layer is a small problem of its own with the same Hessian. The weight whose removal costs least leaves, the others move,
and the inverse loses its row and column:

    cost_q = w_q^2 / [H^-1]_qq,    w <- w - w_q / [H^-1]_qq [H^-1]_:q,    H^-1 <- H^-1 - [H^-1]_:q [H^-1]_q: / [H^-1]_qq

Costs are rises of ``tr(D H D^T)``. The traces of all rows are made once; then any number of weights can leave, cheapest next step
first over all rows. Rows are solved together in batches, in float64: O(rows * removals * features^2).
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Traces", "row_traces"]

_BATCH = 1 << 25  # numbers in the inverses of a batch


@final
@dataclass(frozen=True, kw_only=True)
class Traces:
    """How every row would shrink.

    Args:
        order: ``[rows, steps]``: the feature that leaves at each step.
        costs: ``[rows, steps]``: the rise of each step; infinite where no weight may leave any more.
        features: how many features there are.
    """

    order: Tensor
    costs: Tensor
    features: int

    def mask(self, removed: int) -> Tensor:
        """What stays when ``removed`` weights leave over all rows, ``[rows, features]``; a row goes on only as far as its costs were paid.

        >>> traces = row_traces(torch.tensor([[1.0, 3.0], [2.0, 4.0]]), torch.eye(2))
        >>> traces.mask(2).tolist()
        [[False, True], [False, True]]
        """
        worst = self.costs.cummax(1).values  # a cheap step behind a dear one waits for it
        gone = torch.zeros_like(worst, dtype=torch.bool)
        flat = worst.reshape(-1).argsort(stable=True)[:removed]
        gone.view(-1)[flat] = True
        mask = torch.ones(len(self.order), self.features, dtype=torch.bool, device=self.order.device)
        return mask.scatter_(1, self.order, ~gone)

    def rows_mask(self, removed: Tensor) -> Tensor:
        """The same when each row loses a number of its own, ``[rows]``.

        >>> traces = row_traces(torch.tensor([[1.0, 3.0], [2.0, 4.0]]), torch.eye(2))
        >>> traces.rows_mask(torch.tensor([2, 1])).tolist()
        [[False, False], [False, True]]
        """
        steps = torch.arange(self.order.shape[1], device=self.order.device)
        mask = torch.ones(len(self.order), self.features, dtype=torch.bool, device=self.order.device)
        return mask.scatter_(1, self.order, steps >= removed.unsqueeze(1))

    def curve(self) -> Tensor:
        """The rise after each removal over all rows together, in the order of `mask`, ``[rows * steps]``."""
        order = self.costs.cummax(1).values.reshape(-1).argsort(stable=True)
        return self.costs.reshape(-1)[order].cumsum(0)


def row_traces(
    weight: Tensor, damped: Tensor, *, steps: int | None = None, n: int = 0, m: int = 0, inverse: Tensor | None = None
) -> Traces:
    """Remove up to ``steps`` weights of every row, one after another, the cheapest first.

    Args:
        weight: ``[rows, features]``.
        damped: a positive definite Hessian.
        steps: removals per row; None: all.
        n: of every ``m`` features at least so many stay.
        m: width of a group; 0: none.
        inverse: of ``damped``, if it is there already.
    """
    w = weight.double()
    features = w.shape[1]
    steps = features if steps is None else min(steps, features)
    if m:
        steps = min(steps, features // m * (m - n))
    h = torch.cholesky_inverse(torch.linalg.cholesky(damped.double())) if inverse is None else inverse.double()
    batch = max(1, _BATCH // features**2)
    orders, costs = zip(*(_traced(part, h, steps, n, m) for part in torch.split(w, batch)), strict=True)
    return Traces(order=torch.cat(orders), costs=torch.cat(costs), features=features)


def _traced(w: Tensor, inverse: Tensor, steps: int, n: int, m: int) -> tuple[Tensor, Tensor]:
    rows, features = w.shape
    here = torch.arange(rows, device=w.device)
    w, h = w.clone(), inverse.expand(rows, features, features).clone()
    barred = torch.zeros_like(w, dtype=torch.bool)
    left = torch.full((rows, features // m), m - n, device=w.device) if m else None
    order = torch.zeros(rows, steps, dtype=torch.long, device=w.device)
    costs = torch.zeros(rows, steps, dtype=w.dtype, device=w.device)
    for step in range(steps):
        diagonal = h.diagonal(dim1=1, dim2=2)
        saliency = (w.square() / diagonal).masked_fill_(barred, torch.inf)
        cost, q = saliency.min(1)
        order[:, step], costs[:, step] = q, cost
        column, pivot = h[here, :, q], h[here, q, q]
        w -= (w[here, q] / pivot).unsqueeze(1) * column
        h.baddbmm_((column / pivot.unsqueeze(1)).unsqueeze(2), column.unsqueeze(1), alpha=-1)
        barred[here, q] = True
        w[here, q] = 0
        h[here, q, q] = 1
        if left is not None:
            left[here, q // m] -= 1
            full = (left == 0).repeat_interleave(m, 1)
            barred |= full
    return order, costs
