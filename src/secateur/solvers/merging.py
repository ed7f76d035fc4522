"""Merge similar units: what one sends on is sent on by another that does nearly the same (Srinivas & Babu 2015, "Data-free").

    z = sum over units of  a_i f(w_i x + b_i);      delete j:  a_i <- a_i + (alpha_j / alpha_i) a_j            (section 3, "surgery")
    s_ij = <(alpha_j a_j)^2> ||eps_ij||^2                                                                     (eq. 4)

The mean is over all weights that read j. It is exact where both do the same up to a factor. The cheapest pair is merged again and
again; what was taken over travels on when its new owner leaves in turn. Of all s_ij only those of removing the unit that took over
change, by a factor, so the nearest other unit of each is remembered: a removal takes O(n) work, and O(n) for each unit whose nearest
it was. How alike units are is found elsewhere; see `secateur.solvers.likeness`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Merges", "cut_off", "merge_order", "mode_of", "saliencies"]

_BULK, _BINS = 0.95, 100


@dataclass(frozen=True, eq=False, kw_only=True)
class Merges:
    """All units but one, in the order in which they leave.

    Args:
        removed, into: which unit leaves, and which one takes over what it sends on.
        ratios: alpha_j / alpha_i, what that is multiplied with.
        saliencies: s_ij at that moment.
        total: the sum of <(alpha_k a_k)^2> over all units at the start.
    """

    removed: Tensor
    into: Tensor
    ratios: Tensor
    saliencies: Tensor
    total: float

    def relative(self) -> Tensor:
        """What each removal costs as a part of all that is sent on, so that layers compare; never less than the one before it."""
        return self.saliencies.cummax(0).values / max(self.total, torch.finfo(torch.float64).tiny)

    def apply_(self, outgoing: Tensor, count: int) -> None:
        """Merge the first ``count`` units in ``outgoing`` ``[units, ...]``, in place.

        >>> sizes, same, outgoing = torch.tensor([3.0, 1.0]), torch.zeros(2, 2), torch.tensor([[5.0], [1.0]])
        >>> merge_order(outgoing, sizes, same).apply_(outgoing, 1)  # the first gives three times what the second does: 1 + 3 * 5
        >>> outgoing
        tensor([[ 0.],
                [16.]])
        """
        steps = zip(*(column[:count].tolist() for column in (self.removed, self.into, self.ratios)), strict=True)
        for j, i, ratio in steps:
            outgoing[i] += ratio * outgoing[j]
            outgoing[j] = 0


def merge_order(outgoing: Tensor, sizes: Tensor, apart: Tensor, shares: Tensor | None = None) -> Merges:
    """Which unit is merged into which, until one is left; ties go to the earlier unit.

    Args:
        outgoing: ``[units, ...]``, the weights that read each unit.
        sizes: alpha, ``[units]``.
        apart: ||eps||^2, ``[j, i]`` for i in place of j.
        shares: how much of j (at size 1) i is taken for; None for all of it.
    """
    sizes, distances = sizes.double(), apart.double().clone().fill_diagonal_(torch.inf)
    sent = outgoing.detach().double().cpu().flatten(1) * sizes.unsqueeze(1)
    energy = sent.square().mean(1)
    total = float(energy.sum())
    alive = torch.ones(len(sizes), dtype=torch.bool)
    least, nearest = distances.min(1)
    steps: list[tuple[int, int, float, float]] = []
    for _ in range(len(sizes) - 1):
        costs = torch.where(alive, energy * least, torch.inf)
        j = int(costs.argmin())
        i = int(nearest[j])
        share = 1.0 if shares is None else float(shares[j, i])
        steps.append((j, i, share, float(costs[j])))
        sent[i] += share * sent[j]
        energy[i] = sent[i].square().mean()
        alive[j] = False
        distances[:, j] = torch.inf
        stale = (alive & (nearest == j)).nonzero().squeeze(1)
        if len(stale):
            least[stale], nearest[stale] = distances[stale].min(1)
    return _merges(steps, sizes, total)


def _merges(steps: list[tuple[int, int, float, float]], sizes: Tensor, total: float) -> Merges:
    columns = torch.tensor(steps, dtype=torch.float64).reshape(-1, 4).t()
    removed, into = columns[0].long(), columns[1].long()
    able = (sizes[removed] > 0) & (sizes[into] > 0)  # what gives nothing takes nothing over
    ratios = torch.where(able, columns[2] * sizes[removed] / torch.where(able, sizes[into], 1.0), 0.0)
    return Merges(removed=removed, into=into, ratios=ratios, saliencies=columns[3], total=total)


def saliencies(outgoing: Tensor, sizes: Tensor, apart: Tensor) -> Tensor:
    """All s before anything left: entry ``[j, i]`` is what it costs to merge j into i; infinite on the diagonal."""
    energy = (outgoing.detach().double().cpu().flatten(1) * sizes.double().unsqueeze(1)).square().mean(1)
    return (apart.double() * energy.unsqueeze(1)).fill_diagonal_(torch.inf)


def mode_of(values: Tensor) -> float:
    """The middle of the fullest of 100 equal bins over the bulk of ``values``: what is not above their 95th percentile.

    A few pairs are thousands of times dearer than most: over the whole range nearly everything would fall into the first bin.
    """
    finite = values[torch.isfinite(values)].double().sort().values
    if not len(finite):
        return 0.0
    bulk = finite[: max(1, int(_BULK * len(finite)))]
    low, width = float(bulk[0]), float(bulk[-1] - bulk[0]) / _BINS
    if width == 0:
        return low
    bins = ((bulk - low) / width).long().clamp_(max=_BINS - 1)
    return low + (int(torch.bincount(bins).argmax()) + 0.5) * width


def cut_off(merges: Merges, limit: float) -> int:
    """How many units leave while the cheapest pair costs less than ``limit``, or nothing."""
    above = ((merges.saliencies >= limit) & (merges.saliencies > 0)).nonzero()
    return int(above[0]) if len(above) else len(merges.saliencies)
