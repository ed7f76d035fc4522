"""One layer under the knife: choose what leaves, let the rest make up for it, and say what it costs by the quadratic and in fact.

solvers   columns   column by column (SparseGPT), then the joint solve on the support
exact     greedy row by row (OBC), whose own steps end at the joint solve
split     a support by splitting (ALPS), from the one of "columns", then the same
scores    w^2 / [H^-1]_qq ranked once (Dong et al. 2017, eq. 9), then the same
activation  |w| * rms of the input (Wanda), nothing moves
magnitude, random   controls, nothing moves
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.errors import UnknownName
from secateur.layerwise.done import Operation
from secateur.layerwise.quota import Quota
from secateur.quadratic import Damped, damp, inverse, rise, rows_of_rise
from secateur.solvers.admm_support import admm_support
from secateur.solvers.column_obs import ColumnChoice, column_obs, upper_factor
from secateur.solvers.row_obs import row_traces
from secateur.solvers.support import refit_on_support

__all__ = ["CONTROLS", "SOLVERS", "operate", "refits", "trial_errors"]

SOLVERS = ("columns", "exact", "split", "scores", "activation", "magnitude", "random")
_EXACTLY = 3e8  # weights times features up to which all is done in float64
CONTROLS = ("activation", "magnitude", "random")


def operate(
    weights: Tensor,
    hessians: list[Tensor],
    quota: Quota,
    *,
    solver: str = "columns",
    refit: bool = True,
    damping: float = 0.01,
    block: int = 128,
    generator: torch.Generator | None = None,
    importance: Tensor | None = None,
) -> Operation:
    """Prune one parameter.

    Args:
        weights: what is to be imitated, ``[groups, rows, features]``.
        hessians: one for each group, ``[features, features]``.
        quota: how much stays.
        solver: one of `SOLVERS`.
        refit: whether survivors are solved for jointly in the end; "exact" does so anyway.
        damping: a fraction of each Hessian's mean diagonal.
        block: columns that the solver "columns" decides together.
        generator: for "random".
        importance: of each row, ``[groups, rows]``: what an error of its output counts; it matters where rows compete.

    Raises:
        UnknownName: there is no such solver.
        BadCalibration: a Hessian is not finite.
    """
    if solver not in SOLVERS:
        raise UnknownName(f"solver={solver!r} is not known: use one of {', '.join(SOLVERS)}")
    kind, w, damped, dead, weigh = _laid_out(weights, hessians, damping, quota.name, importance)
    idle = bool(dead.all())
    if solver in CONTROLS or idle:
        plain = "magnitude" if idle and solver != "random" else solver
        evidence = _plain(plain, weights.to(kind), hessians, generator)
        mask = quota.choose(evidence * weigh if plain == "activation" else evidence)
        moved, predicted = w * mask, _total(w * ~mask, [d.matrix for d in damped])
    else:
        mask, moved, predicted = _chosen(w, damped, quota, solver, block=block, weigh=weigh)
    refitted = predicted
    if refits(solver, refit=refit):
        moved = torch.stack(
            [refit_on_support(a, d.matrix, m, start=s) for a, d, m, s in zip(w, damped, mask, moved, strict=True)]
        )
        refitted = _total(w - moved, [d.matrix for d in damped])
        predicted = refitted if solver == "exact" else predicted
    # of dead inputs the data say nothing: what stays, stays as it was
    moved = torch.where(dead & mask, weights.to(kind), moved)
    return Operation(
        weights=moved,
        mask=mask,
        predicted=predicted,
        refitted=refitted,
        measured=_total(weights.to(kind) - moved, hessians),
        energy=_total(weights.to(kind), hessians),
        notes={"dead": int(dead.sum()), "damping": [d.added for d in damped]} | ({"idle": True} if idle else {}),
    )


def refits(solver: str, *, refit: bool) -> bool:
    """Whether survivors end where a joint solve does: also by the steps of "exact", each of which moves all that are left of its row."""
    return solver == "exact" or (refit and solver not in CONTROLS)


class _Table(NamedTuple):
    kind: torch.dtype  # in which all is done
    weights: Tensor  # nothing for dead inputs
    damped: list[Damped]
    dead: Tensor  # [groups, 1, features]
    weigh: Tensor  # [groups, rows, 1]


def _laid_out(
    weights: Tensor, hessians: Sequence[Tensor], damping: float, name: str, importance: Tensor | None
) -> _Table:
    exact = weights.dtype == torch.float64 or weights.numel() * weights.shape[2] <= _EXACTLY
    kind = torch.float64 if exact else torch.float32
    damped = [damp(h.to(kind), damping, name) for h in hessians]
    dead = torch.stack([d.dead for d in damped]).unsqueeze(1)
    w = torch.where(dead, 0, weights.to(kind))
    weigh = torch.ones_like(w[:, :, :1]) if importance is None else importance.to(kind).unsqueeze(2)
    return _Table(kind, w, damped, dead, weigh)


def trial_errors(
    weights: Tensor,
    hessians: Sequence[Tensor],
    quotas: Sequence[Quota],
    *,
    damping: float,
    block: int,
    importance: Tensor,
) -> Iterator[float]:
    """What `operate` with the solver "columns" and without a refit would lose at each of ``quotas``, rows weighed; what costs is shared."""
    _, w, damped, _, weigh = _laid_out(weights, hessians, damping, quotas[0].name, importance)
    plain = [h.to(w.dtype) for h in hessians]
    factors = [upper_factor(d.matrix) for d in damped]
    for quota in quotas:
        _, moved = _stepped(w, damped, quota, "columns", block=block, weigh=weigh, factors=factors)
        rises = torch.stack([rows_of_rise(delta, h) for delta, h in zip(w - moved, plain, strict=True)])
        yield max(float((rises.double() * importance.double()).sum()), 0.0)  # below zero is rounding


def _total(delta: Tensor, hessians: list[Tensor]) -> float:
    """A mean of squares, so never below zero, where what is next to nothing drowns in the rounding of a Hessian without full rank."""
    return max(sum(rise(d, h) for d, h in zip(delta, hessians, strict=True)), 0.0)


def _plain(solver: str, w: Tensor, hessians: list[Tensor], generator: torch.Generator | None) -> Tensor:
    """Evidence that needs no inverse; squares, so that it adds over units."""
    if solver == "random":
        return torch.rand(w.shape, generator=generator, dtype=torch.float64).to(w.device)
    if solver == "magnitude":
        return w.square()
    return w.square() * torch.stack([h.diagonal() for h in hessians]).unsqueeze(1).to(w.dtype)


def _chosen(
    w: Tensor, damped: list[Damped], quota: Quota, solver: str, *, block: int, weigh: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Mask, weights moved by the steps, and the rise of these steps."""
    root = weigh.sqrt()
    mask, moved = _stepped(w, damped, quota, solver, block=block, weigh=weigh)
    if solver == "split":
        mask = _split(w, damped, quota, moved, root)
        moved = moved * mask
    return mask, moved, _total(w - moved, [d.matrix for d in damped])


def _stepped(
    w: Tensor,
    damped: list[Damped],
    quota: Quota,
    solver: str,
    *,
    block: int,
    weigh: Tensor,
    factors: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask and weights moved by the steps of the columns."""
    choices = _choices(w, damped, quota, solver, weigh)
    root = weigh.sqrt()  # rows are solved alike whatever they count, but they compete by it
    factors = factors or [None] * len(damped)
    found = [
        column_obs(a * r, d.matrix, choice, block=block, factor=u)
        for a, r, d, choice, u in zip(w, root, damped, choices, factors, strict=True)
    ]
    moved = torch.stack([weights for weights, _, _ in found]) / root
    mask = torch.stack([kept for _, kept, _ in found])
    return mask, moved * mask


def _choices(
    w: Tensor, damped: list[Damped], quota: Quota, solver: str, weigh: Tensor
) -> Sequence[ColumnChoice | Tensor]:
    """What the columns are to keep, for each group: so many, or a mask."""
    words = quota.columns(0)
    if words is not None and (w.shape[1] % words.rows or w.shape[2] % words.columns):
        words = None  # blocks do not fit into a group of rows: they are ranked once
    if len(w) == 1 and words is not None and solver in ("columns", "split"):
        return [replace(words, count=quota.count * words.rows * words.columns)]
    inverses = [inverse(d.matrix) for d in damped]
    once = w.square() / torch.stack([i.diagonal() for i in inverses]).unsqueeze(1)
    mask = quota.choose(once * weigh)
    if solver == "exact":
        mask = _exact(w, damped, inverses, mask, quota=quota, weigh=weigh)
    if solver in ("exact", "scores") or words is None:
        return list(mask)
    return [replace(words, count=int(m.sum())) for m in mask]


def _exact(
    w: Tensor, damped: list[Damped], inverses: list[Tensor], mask: Tensor, *, quota: Quota, weigh: Tensor
) -> Tensor:
    """Greedy masks, where single weights or N:M leave; other patterns keep the ranking."""
    choice = quota.columns(1)
    if choice is None or choice.rows * choice.columns > 1:
        return mask
    found = []
    for a, d, i, m, r in zip(w, damped, inverses, mask, weigh, strict=True):
        gone = (~m).sum(1)
        if choice.m:
            traces = row_traces(a, d.matrix, n=choice.n, m=choice.m, inverse=i)
            found.append(traces.mask(traces.order.numel()))
            continue
        if choice.per_row:
            found.append(row_traces(a, d.matrix, inverse=i, steps=int(gone.max())).rows_mask(gone))
            continue
        found.append(row_traces(a * r.sqrt(), d.matrix, inverse=i).mask(int(gone.sum())))
    return torch.stack(found)


def _split(w: Tensor, damped: list[Damped], quota: Quota, moved: Tensor, root: Tensor) -> Tensor:
    """One group after another; units of the others compete with what they have."""
    evidence = (moved * root).square() * torch.stack([d.matrix.diagonal() for d in damped]).unsqueeze(1)
    masks = (moved != 0).clone()
    for group, d in enumerate(damped):

        def project(scaled: Tensor, group: int = group) -> Tensor:
            evidence[group] = scaled.square()
            return quota.choose(evidence)[group]

        split = admm_support(w[group] * root[group], d.matrix, project, start=moved[group] * root[group])
        masks[group] = split.mask
    if len(damped) == 1:
        return masks
    return quota.choose(evidence)  # a last look at all groups, so that the count is exact
