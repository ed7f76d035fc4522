"""Redundancy: in which order the units of a wire merge into each other, what it costs, and the surgery itself.

Filters are those of the network as it came, also where an earlier group has lost channels by then: groups do not depend on each
other's turn, so how many leave where can be decided after all orders are known.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.merging.wiring import Filters, Wire, filters_of, outgoing_of, set_outgoing_
from secateur.solvers.least_squares import refit, refit_costs
from secateur.solvers.likeness import Kernel, Likeness, expected_likeness, expected_products, relative_likeness
from secateur.solvers.merging import Merges, cut_off, merge_order, mode_of, saliencies

__all__ = ["DISTANCES", "HISTOGRAMS", "LEAST", "Redundancy", "merge_", "redundancy_of"]

DISTANCES = ("relative", "expected")
HISTOGRAMS = ("removals", "pairs")
LEAST = 100  # units of a group whose histogram has a mode: as many as bins
_LARGEST = 1e6  # of a relative cost; sums of scores stay exact beside it


@dataclass(frozen=True, eq=False, kw_only=True)
class Redundancy:
    """What is known about a group before anything leaves.

    Args:
        wire: its layers.
        merges: the order in which all units but one leave.
        mode: the saliency that is most frequent, of all removals or of all pairs; 0 for a group of too few units for a histogram.
        costs: what each removal costs as a part of all that the group sends on, in that order.
    """

    wire: Wire
    merges: Merges
    mode: float
    costs: Tensor

    @property
    def predicted(self) -> int:
        """How many units leave while that costs less than the mode."""
        return cut_off(self.merges, self.mode)

    def scores(self) -> Tensor:
        """What each unit costs when its turn comes, relative to all that the group sends on, ``[units]``; the last is as dear as the one before."""
        costs = self.costs.clamp(max=_LARGEST)
        scores = torch.full((self.wire.group.units,), float(costs[-1]) if len(costs) else 1.0, dtype=torch.float64)
        scores[self.merges.removed] = costs
        return scores

    def kept(self, count: int) -> Tensor:
        """Which units stay when so many stay."""
        kept = torch.ones(self.wire.group.units, dtype=torch.bool)
        kept[self.merges.removed[: len(kept) - count]] = False
        return kept


def redundancy_of(
    model: nn.Module, wire: Wire, *, distance: str = "relative", histogram: str = "removals", refitted: bool = False
) -> Redundancy:
    """Compare all units of a group and merge them in thought.

    Args:
        model: nothing in it changes.
        wire: see `secateur.merging.passage.wires_of`.
        distance: "relative", as in the paper, or "expected"; see `secateur.solvers.likeness`.
        histogram: "removals" or "pairs": what the mode is taken of.
        refitted: costs are those that a refit leaves, not those of mergers.
    """
    filters, outgoing = filters_of(model, wire), outgoing_of(model, wire)
    likeness = _likeness(filters, wire, distance)
    merges = merge_order(outgoing, *likeness)
    mode = 0.0
    if wire.group.units >= LEAST:
        every = histogram == "pairs"
        mode = mode_of(saliencies(outgoing, likeness.sizes, likeness.apart) if every else merges.saliencies)
    costs = merges.relative()
    if refitted and wire.refits:
        costs = refit_costs(outgoing, expected_products(*filters, kernel=wire.kernel), merges.removed)
    return Redundancy(wire=wire, merges=merges, mode=mode, costs=costs)


def _likeness(filters: Filters, wire: Wire, distance: str) -> Likeness:
    if distance == "relative":
        return relative_likeness(*filters, homogeneous=wire.homogeneous)
    # what varies: a mean that all of them have makes them no more alike
    return expected_likeness(*filters, homogeneous=wire.homogeneous, kernel=Kernel.bent(wire.slope))


def merge_(
    model: nn.Module, redundancy: Redundancy, count: int, *, refitted: bool = False, damping: float = 1e-3
) -> None:
    """Let the readers take from the units that stay what they took from the first ``count`` that leave, in place.

    Args:
        model: a copy of the network.
        redundancy: the order.
        count: how many units leave.
        refitted: then find the weights that change the least of what is read, by least squares for the inputs that
            "expected" assumes.
        damping: of the least squares, as a fraction of the mean diagonal.
    """
    wire, kept = redundancy.wire, redundancy.kept(redundancy.wire.group.units - count)
    before = outgoing_of(model, wire)
    after = before.clone()
    redundancy.merges.apply_(after, count)
    if refitted and count and wire.refits:
        products = expected_products(*filters_of(model, wire), kernel=wire.kernel).to(before.device)
        lost = (before - after).t()  # exactly nothing where a unit had its like, so that such mergers stay exact
        after[kept] += refit(lost, products[:, kept], products[kept][:, kept], damping=damping).t()
    set_outgoing_(model, wire, after)
