"""Data-free parameter pruning: similar units are merged, from weights alone (Srinivas & Babu 2015, BMVC).

    couple --> wires (one maker, private readers) --> merge the cheapest pair, again and again --> how many --> narrow

A removal costs s_ij = <a_j^2> ||eps_ij||^2 (eq. 4; see `secateur.solvers.merging`). Which groups qualify is found out by feeding noise
in (`secateur.merging.passage`), so convolutions, batch norms, pooling and flattening take part wherever the algebra holds. How many leave is
said by a sparsity or a budget, or by the saliencies themselves: units leave while that costs less than is most frequent (section 4).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from secateur.counting import check_choice
from secateur.coupling import Coupling
from secateur.coupling.census import groups_of, held_of
from secateur.coupling.channels import Channels
from secateur.errors import BadSparsity, NothingToPrune
from secateur.graphs import copied
from secateur.limits import check_units
from secateur.masks import Masks
from secateur.merging.passage import wires_of
from secateur.merging.redundancy import DISTANCES, HISTOGRAMS, LEAST, Redundancy, merge_, redundancy_of
from secateur.narrowing.meeting import Limit
from secateur.narrowing.narrow import narrow, structure_of
from secateur.narrowing.thinning import choose, coupled
from secateur.notes import describe
from secateur.profiling.profile import compare
from secateur.protocols import Allocation
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.targets import Ignore
from secateur.task import Task
from secateur.units import Units

__all__ = ["DataFree"]


@final
@dataclass(frozen=True, kw_only=True)
class DataFree:
    """Merge similar channels and hidden units, and narrow the network. No data, no gradients, no labels.

    Args:
        allocation: how many units of each group stay, or a `Limit` on what the result may cost; None: the cut-off of the paper.
        fraction: of the number that the cut-off predicts; the paper takes 0.25, 0.5 or 0.75 for large networks.
        histogram: what the cut-off is the mode of: "removals", the cost of each removal, or "pairs", of all pairs at the start,
            which is higher as a rule.
        distance: "relative", as in the paper, or "expected"; see `secateur.solvers.likeness`.
        refit: in the end let all units that stay make up for those that left, by least squares for the inputs that "expected" assumes
            (no data), where activations are homogeneous; what that leaves of the error is also what groups are compared by.
        naive: the control: the same units leave, and nothing takes over.
        round_to: keep widths at multiples of this.
        ignore: layers whose channels stay.
        fallback: "graph": see `secateur.couple`.
    """

    allocation: Allocation | Limit | None = None
    fraction: float = 1.0
    histogram: str = "removals"
    distance: str = "relative"
    refit: bool = False
    naive: bool = False
    round_to: int = 1
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    fallback: str | None = None

    by_name: ClassVar[str] = "channel"  # `secateur.prune` takes this method by its name, at this granularity

    def __post_init__(self) -> None:
        check_units(round_to=self.round_to)
        if not 0 < self.fraction <= 1:
            raise BadSparsity(
                f"fraction={self.fraction:g} is of the number of units that the cut-off predicts: above 0, at most 1"
            )
        if self.fraction < 1 and self.allocation is not None:
            raise BadSparsity(
                "fraction= is of what the cut-off predicts; a sparsity or a budget says by itself how much leaves"
            )
        check_choice("histogram", self.histogram, HISTOGRAMS)
        check_choice("distance", self.distance, DISTANCES)

    def __call__(
        self,
        model: nn.Module,
        *,
        task: Task | None = None,
        example_inputs: Any = None,
        coupling: Coupling | None = None,
    ) -> Pruned:
        """Return a narrowed copy of ``model``, the masks on the original names, and the receipt.

        Args:
            model: the network; it is not touched.
            task: only its ``evaluate``, for the receipt.
            example_inputs: what the model is run on to see what is coupled; their values do not matter.
            coupling: what `couple` found, if it was run before.

        Raises:
            NeedsTask: no ``example_inputs``.
            NothingToPrune: no group of channels qualifies; the message says why.
            NarrowingFailed, UnknownOperation, BadSparsity, OverBudget: see the parts.
        """
        coupling = coupled(model, example_inputs, coupling=coupling, ignore=self.ignore, fallback=self.fallback)
        refitted = self.refit and not self.naive
        wires, why = wires_of(model, coupling.groups(), example_inputs, refitted=refitted)
        if not wires:
            raise NothingToPrune(f"no units of {type(model).__name__} can be merged: {_listed(why)}")
        found = [
            redundancy_of(model, wire, distance=self.distance, histogram=self.histogram, refitted=refitted)
            for wire in wires
        ]
        counts, said = self._counts(model, coupling, found, example_inputs)
        masks = _masks(model, coupling, found, counts)
        source = masks.apply_(self._merged(model, found, counts))
        thin = narrow(source, masks, example_inputs, coupling=coupling) if masks.kept < masks.total else source
        structure = structure_of(thin)
        notes = (*said, *self._notes(found, counts, why), *([coupling.said] if coupling.said else []))
        settings = {"groups": [self._row(one, count) for one, count in zip(found, counts, strict=True)]}
        report = compare(model, thin, example_inputs, task=task, method=self._said(), notes=notes, settings=settings)
        report = replace(report, groups=groups_of(coupling, model, structure), held=held_of(coupling, model))
        return Pruned(thin, masks, report, structure)

    def _counts(
        self, model: nn.Module, coupling: Coupling, found: Sequence[Redundancy], example_inputs: Any
    ) -> tuple[list[int], tuple[str, ...]]:
        """How many units of each group stay, and what came of a budget."""
        allocation = self.allocation
        if allocation is None:
            key = Channels(groups=coupling.groups()).key
            allocation = _Without(gone={key(one.wire.group): round(self.fraction * one.predicted) for one in found})
        scores = _scores(model, coupling, found)
        how = {"example_inputs": example_inputs, "round_to": self.round_to}
        masks, said = choose(model, coupling, scores, allocation, unjudged=False, **how)  # why not, is said by itself
        return [_left(one, masks) for one in found], said

    def _merged(self, model: nn.Module, found: Sequence[Redundancy], counts: Sequence[int]) -> nn.Module:
        merged = copied(model)
        for one, count in zip(found, counts, strict=True):
            if not self.naive:
                merge_(merged, one, one.wire.group.units - count, refitted=self.refit)
        return merged

    def _notes(self, found: Sequence[Redundancy], counts: Sequence[int], why: Mapping[str, list[str]]) -> list[str]:
        gone = [one.wire.group.units - count for one, count in zip(found, counts, strict=True)]
        done = [f"{one.wire.maker[0]} {n} of {one.wire.group.units}" for one, n in zip(found, gone, strict=True)]
        notes = [f"Units {'removed, nothing merged' if self.naive else 'merged'}: {', '.join(done)}"]
        if self.allocation is None:
            share = f", {self.fraction:.0%} of the number" if self.fraction < 1 else ""
            few = [one.wire.maker[0] for one in found if one.wire.group.units < LEAST]
            notes.append(
                f"Cut-off without data: the mode of the saliencies of all {self.histogram}, in 100 bins up to their 95th percentile{share}"
                + (f"; below {LEAST} units only what has its exact like is merged: {', '.join(few)}" if few else "")
            )
        unequal = [one.wire.maker[0] for one in found if not one.wire.homogeneous]
        if unequal:
            notes.append(f"Compared without scaling, since what follows is not homogeneous: {', '.join(unequal)}")
        unfitted = [one.wire.maker[0] for one, n in zip(found, gone, strict=True) if n and not one.wire.refits]
        if self.refit and unfitted:
            notes.append(
                f"Merged without refit, since what follows is not homogeneous or a unit has several channels: {', '.join(unfitted)}"
            )
        if not any(gone):
            notes.append(f"Nothing was removed: {self._why_none()}")
        return notes + ([f"Not merged, so left whole: {_listed(why)}"] if why else [])

    def _why_none(self) -> str:
        if self.allocation is None:
            return "no two units are alike enough; a sparsity or a budget says how many leave all the same"
        return "what was asked for is kept as it is, or rounds to zero units in every group"

    def _row(self, one: Redundancy, count: int) -> dict[str, Any]:
        gone = one.wire.group.units - count
        return {
            "name": one.wire.maker[0],
            "units": one.wire.group.units,
            "removed": gone,
            "cut_off": one.mode,
            "predicted": one.predicted,
            "last_saliency": float(one.merges.saliencies[gone - 1]) if gone else 0.0,
            "homogeneous": one.wire.homogeneous,
        }

    def _said(self) -> str:
        how = "removed as if merged (control)" if self.naive else "merged"
        amount = "up to the mode of the saliencies" if self.allocation is None else describe(self.allocation)
        rest = (", readers refitted for expected inputs" if self.refit and not self.naive else "") + (
            f", widths in multiples of {self.round_to}" if self.round_to > 1 else ""
        )
        return f"similar units {how}, {self.distance} distance, no data, {amount}{rest}"


@dataclass(frozen=True, kw_only=True)
class _Without:
    """The allocation that takes so many units out."""

    gone: Mapping[str, int]

    def __call__(self, units: Units) -> Mapping[str, int]:
        return {name: units.count(name) - self.gone[name] for name in units}


def _scores(model: nn.Module, coupling: Coupling, found: Sequence[Redundancy]) -> Scores:
    """What each unit costs when its turn comes; groups that are not merged have none, so they stay."""
    own = dict(model.named_parameters())
    values = {name: own[name].detach() for group in coupling.groups() for name, _ in group.places if name in own}
    channels: dict[tuple[str, int], Tensor] = {}
    for one in found:
        name, dim = one.wire.maker
        index = one.wire.group.places[one.wire.maker]
        row = channels.setdefault((name, dim), torch.zeros(values[name].shape[dim], dtype=torch.float64))
        row[index] = one.scores().unsqueeze(1).expand_as(index)
    return Scores(values, channels=channels)


def _left(one: Redundancy, masks: Masks) -> int:
    (name, dim), index = one.wire.maker, one.wire.group.places[one.wire.maker]
    return int(masks[name].movedim(dim, 0).flatten(1).any(1).cpu()[index].any(1).sum())


def _masks(model: nn.Module, coupling: Coupling, found: Sequence[Redundancy], counts: Sequence[int]) -> Masks:
    """The masks of these counts, in the order in which units merge, whatever a ranking makes of equal scores."""
    channels = Channels(groups=coupling.groups())
    keep = {
        channels.key(one.wire.group): one.kept(count).unsqueeze(0) for one, count in zip(found, counts, strict=True)
    }
    return channels.spread(keep, _scores(model, coupling, found))


def _listed(why: Mapping[str, list[str]]) -> str:
    parts = [f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({reason})" for reason, names in why.items()]
    return "; ".join(parts[:8]) + ("; ..." if len(parts) > 8 else "")
