"""`plan` is the library in one function: scores in, masks out.

    scores --pool--> units --allocate--> how many per name --select--> which --spread--> masks

One-shot and gradual pruning, and every projection onto a sparsity pattern, call it. It knows no model.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from secateur.counting import check_sparsity
from secateur.errors import BadSparsity
from secateur.masks import Masks
from secateur.protocols import Allocation, Granularity
from secateur.ranking.selection import cut_for, top_of_groups
from secateur.scores import Scores
from secateur.units import Table, Units

__all__ = ["agreed_sparsity", "plan", "select"]


def plan(
    scores: Scores, granularity: Granularity, allocation: Allocation | None, *, within: Masks | None = None
) -> Masks:
    """Decide which weights stay.

    Args:
        scores: evidence per weight; larger means more worth keeping.
        granularity: what leaves together.
        allocation: how many units stay where; ``None`` for a granularity with a quota (N:M), which needs none.
        within: earlier masks; what they removed stays removed, whatever it scores now.

    Returns:
        Masks with ``True`` for kept; the counts are exact and ties go to the earlier unit.

    Raises:
        BadScores: a score is NaN.
        BadPattern: a shape does not divide into the granularity.
        BadSparsity: no allocation was given where one is needed, or it cannot be met.

    >>> import torch
    >>> from secateur.allocations.uniform import Uniform
    >>> from secateur.granularities.unstructured import Unstructured
    >>> scores = Scores({"weight": torch.tensor([[0.5, -3.0, 2.0, 0.1]])}, each=torch.abs)
    >>> plan(scores, Unstructured(), Uniform(sparsity=0.5))["weight"]
    tensor([[False,  True,  True, False]])
    """
    units = granularity.pool(scores)
    if within is not None:
        units = _only_alive(units, granularity.pool(Scores(within, each=Tensor.float, facts=scores.facts)))
    if granularity.quota is not None:
        counts = {name: granularity.quota * units.tables[name].shape[0] for name in units}
    elif allocation is None:
        raise BadSparsity(f"{granularity} needs to know how much to remove: pass sparsity=, a budget or an allocation")
    else:
        counts = dict(allocation(units))
    masks = granularity.spread(select(units, counts), scores)
    return masks if within is None else masks & within  # an allocation may ask for more than is left of a layer


def agreed_sparsity(granularity: Granularity, scores: Scores, asked: float | None) -> float:
    """The fraction to remove: ``asked``, or what a granularity with a quota says by itself.

    Raises:
        BadSparsity: neither says anything, they contradict each other, or ``asked`` is not in [0, 1).
    """
    if granularity.quota is None:
        if asked is None:
            raise BadSparsity(
                "how much should leave? pass sparsity=, the fraction removed (only N:M says it by itself)"
            )
        return check_sparsity(asked)
    width = next(table.shape[1] for table in granularity.pool(scores).tables.values())
    given = 1 - granularity.quota / width
    if asked is not None and abs(asked - given) > 1e-9:
        raise BadSparsity(
            f"keeping {granularity.quota} of every {width} removes {given:g} of the weights, but sparsity={asked:g} was asked "
            "for; leave sparsity out, or choose another pattern"
        )
    return given


def _only_alive(units: Units, alive: Units) -> Units:
    """Rank units of which nothing is left below all others, so that counts stay exact without them."""

    def wrapped(table: Table, left: Table) -> Table:
        def read(start: int, stop: int) -> Tensor:
            scores = table.read(start, stop)
            scores = scores if scores.is_floating_point() else scores.double()
            return scores.masked_fill(left.read(start, stop) == 0, -torch.inf)

        return replace(table, read=read)

    return Units({name: wrapped(table, alive.tables[name]) for name, table in units.tables.items()})


def select(units: Units, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Choose the ``counts[name]`` best units of every name, split evenly over its groups; ties by index.

    Returns:
        name to a bool table ``[group, unit]``, ``True`` = kept.
    """
    return {name: _select_one(units, name, counts[name]) for name in units}


def _select_one(units: Units, name: str, count: int) -> Tensor:
    groups, width = units.tables[name].shape
    if count <= 0 or count >= groups * width:
        devices = [piece.device for _, piece in units.pieces(name)]  # reads all of it: NaN is refused here too
        return torch.full((groups, width), count > 0, dtype=torch.bool, device=devices[0] if devices else None)
    if groups > 1:
        each, extra = divmod(count, groups)  # the first `extra` groups keep one unit more
        keep = [
            top_of_groups(
                piece.view(-1, width), each + (torch.arange(start // width, (start + piece.numel()) // width) < extra)
            )
            for start, piece in units.pieces(name)
        ]
        return torch.cat(keep)
    return _select_top(units, name, count).view(groups, width)


def _select_top(units: Units, name: str, count: int) -> Tensor:
    cut = units.cuts.get((name, count)) or cut_for(units, count, [name])
    kept, ties_left = None, cut.ties
    for start, piece in units.pieces(name):
        if kept is None:
            kept = torch.empty(units.count(name), dtype=torch.bool, device=piece.device)
        kept[start : start + piece.numel()], ties_left = cut.keep(piece, ties_left)
    assert kept is not None
    return kept
