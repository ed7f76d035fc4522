"""Thinning: what the methods that take channels out have in common.

couple --> groups --> plan(scores, Channels(groups), allocation) --> masks --> narrow --> a smaller network and its receipt
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from secateur.allocations.rounded import Rounded
from secateur.coupling import Coupling, couple
from secateur.coupling.census import groups_of, held_of
from secateur.coupling.channels import Channels
from secateur.errors import NeedsTask, NothingToPrune, OverBudget, WrongModel
from secateur.facts import LayerFacts
from secateur.graphs import copied
from secateur.masks import Masks
from secateur.narrowing.agreement import difference, outputs_of
from secateur.narrowing.meeting import Limit, meet
from secateur.narrowing.narrow import narrow, structure_of
from secateur.narrowing.recoupling import CHANGES, Narrowed
from secateur.planning import plan
from secateur.profiling.profile import compare
from secateur.protocols import Allocation
from secateur.report import Profile, Pruned
from secateur.scores import Scores
from secateur.structure import Structure
from secateur.targets import Ignore, refuse_unfinite, refuse_unusable
from secateur.task import Task

__all__ = ["choose", "coupled", "masks_of", "members_of", "receipt", "thin"]


def coupled(
    model: nn.Module,
    example_inputs: Any,
    *,
    coupling: Coupling | None = None,
    ignore: Ignore | Iterable[Ignore] = (),
    heads: str = "whole",
    norms: str = "hold",
    fallback: str | None = None,
) -> Coupling:
    """`couple`, unless it was done before, for a method that has to take something out.

    Raises:
        NeedsTask: no ``example_inputs``; coupling is found by running the model once.
        NothingToPrune: no channel may leave.
        BadScores: numbers of a layer that may lose channels are NaN or infinite.
        UnknownOperation, UnknownName: see `couple`.
    """
    if example_inputs is None:
        raise NeedsTask(
            "narrowing runs the model once to see what is coupled: pass example_inputs=, e.g. torch.randn(1, 3, 224, 224)"
        )
    _refuse_wrapped(model)
    refuse_unusable(model, ignore=ignore)  # refuses what cannot be pruned, before time is spent
    coupling = coupling or couple(model, example_inputs, ignore=ignore, heads=heads, norms=norms, fallback=fallback)
    if not coupling.groups():
        raise NothingToPrune(
            f"no channel of {type(model).__name__} may leave; couple(...).explain('layer') says why, layer by layer"
            f"{_advice(coupling, norms)}"
        )
    refuse_unfinite(model, {name for group in coupling.groups() for name, _ in group.places})
    return coupling


def _refuse_wrapped(model: nn.Module) -> None:
    """Code that torch has compiled cannot become narrower."""
    if hasattr(model, "_orig_mod"):
        raise WrongModel(
            "the model is wrapped by torch.compile: pass the module itself (model._orig_mod), and compile what comes back"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise WrongModel("a TorchScript module keeps its widths: pass the module that it was scripted or traced from")


def members_of(coupling: Coupling, model: nn.Module) -> dict[str, LayerFacts]:
    """The parameters that units of the groups have a part of: what a criterion has to score."""
    own = dict(model.named_parameters())
    return {name: LayerFacts() for group in coupling.groups() for name, _ in group.places if name in own}


def masks_of(structure: Structure, coupling: Coupling, model: nn.Module) -> Masks:
    """What ``structure`` keeps of the members of the groups, on the names and shapes of ``model``, which it was made for."""
    whole = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in members_of(coupling, model)}
    return Masks({n: structure.mask(n).to(m.device) if n in structure.kept else m for n, m in whole.items()})


def choose(
    model: nn.Module,
    coupling: Coupling,
    scores: Scores,
    allocation: Allocation | Limit,
    *,
    example_inputs: Any,
    round_to: int = 1,
    unjudged: bool = True,
) -> tuple[Masks, tuple[str, ...]]:
    """Which units stay, as masks, and what came of a budget, in words; with ``unjudged`` also which groups have no scores.

    Raises:
        OverBudget, BadScores, BadSparsity: see the parts.
    """
    silent = _unjudged(coupling, scores) if unjudged else ()
    if isinstance(allocation, Limit):
        try:
            met = meet(model, coupling, scores, within=allocation, example_inputs=example_inputs, round_to=round_to)
        except OverBudget as error:
            if not silent:
                raise
            raise OverBudget(f"{error}. {silent[0]}") from None
        spent = f"{allocation.budget.cost} {getattr(allocation.cost, 'place', '')}".strip()
        return met.masks, (met.says(spent, allocation.cost.unit), *silent)
    granularity = Channels(groups=coupling.groups())
    if round_to > 1:
        entries = tuple((granularity.key(group), group.entries) for group in coupling.groups())
        allocation = Rounded(allocation=allocation, multiple=round_to, entries=entries)
    return plan(scores, granularity, allocation), silent


def _unjudged(coupling: Coupling, scores: Scores) -> tuple[str, ...]:
    """Groups that the criterion says nothing about."""
    if scores.channels is None:
        return ()
    silent = [group.name for group in coupling.groups() if not any(place in scores.channels for place in group.places)]
    if not silent:
        return ()
    more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
    return (
        f"The criterion says nothing about {len(silent)} of {len(coupling.groups())} groups, which stay whole: {', '.join(silent[:4])}{more}; "
        "'magnitude' and 'taylor' judge every group",
    )


def thin(
    model: nn.Module,
    masks: Masks,
    coupling: Coupling,
    *,
    example_inputs: Any,
    before: nn.Module | Profile,
    task: Task | None = None,
    method: str,
    settings: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> Pruned:
    """A copy of ``model`` without what ``masks`` remove, and the receipt.

    Args:
        model: what is narrowed; it keeps its shape.
        masks: on the names of ``model``.
        coupling: of ``model``.
        example_inputs: what it was found with; the copy is compared with the masked model on them.
        before: what the receipt compares with: a model, or its profile.
        task: for the receipt's scores.
        method: what was done, in words, for the receipt.
        settings: the same as data.
        notes: what the reader should know.

    Raises:
        NarrowingFailed: see `narrow`.
    """
    removed = masks.kept < masks.total
    smaller = narrow(model, masks, example_inputs, coupling=coupling) if removed else copied(model)
    narrowed = Narrowed(smaller, model, masks, coupling)
    return receipt(
        narrowed,
        example_inputs=example_inputs,
        before=before,
        task=task,
        method=method,
        settings=settings,
        notes=notes,
    )


def receipt(
    narrowed: Narrowed,
    *,
    example_inputs: Any,
    before: nn.Module | Profile,
    task: Task | None = None,
    method: str,
    settings: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> Pruned:
    """What `thin` says of a model that is narrowed already."""
    source, masks, coupling = narrowed.source, narrowed.masks, narrowed.coupling
    said = (*notes, *_notes(coupling, masks), *_difference(narrowed, example_inputs))
    report = compare(before, narrowed.model, example_inputs, task=task, method=method, settings=settings, notes=said)
    structure = coupling.structure_for(masks) if masks.kept < masks.total else None
    report = replace(report, groups=groups_of(coupling, source, structure), held=held_of(coupling, source))
    return Pruned(narrowed.model, masks, report, structure_of(narrowed.model))


def _notes(coupling: Coupling, masks: Masks) -> tuple[str, ...]:
    held = [n for n, dims in coupling.dye.owners.items() if n.endswith("weight") and len(dims) > 1 and n not in masks]
    notes = [
        f"{len(coupling.groups())} groups of coupled channels; couple(...).explain('layer') says why the rest stays"
    ]
    if coupling.said:
        notes.append(coupling.said)
    if coupling.dye.unknown:
        notes.append(f"What it touches stays: {coupling.dye.unknown}")
    if any(why.reason == CHANGES for _, why in coupling.dye.palette.frozen):
        notes.append("Some groups stay because the network computed something else without them; explain() says which")
    if masks.kept == masks.total:
        notes.append("Nothing was removed: what was asked for is kept as it is, or rounds to zero units in every group")
    if held:
        notes.append(f"No channel of {len(held)} weight(s) may leave, first {', '.join(held[:4])}")
    return tuple(notes)


def _advice(coupling: Coupling, norms: str) -> str:
    reasons = {why.reason for _, why in coupling.dye.palette.frozen}
    if norms == "hold" and reasons & {"is normalised together", "is reduced over all channels"}:
        return ". Norms over channels hold some of them: norms='shrink' lets those leave, and the outputs then differ from the masked"
    return ""


def _difference(narrowed: Narrowed, example_inputs: Any) -> tuple[str, ...]:
    """By how much the narrowed model differs from the masked one, where norms shrank."""
    masks, coupling = narrowed.masks, narrowed.coupling
    why = coupling.inexact(coupling.structure_for(masks)) if masks.kept < masks.total else None
    if why is None:
        return ()
    masked = outputs_of(masks.apply_(copied(narrowed.source)), example_inputs)
    apart = max(difference(a, b) for a, b in zip(masked, outputs_of(narrowed.model, example_inputs), strict=True))
    return (
        f"Norms run over fewer channels than in the masked model, so the outputs are not the same: they differ by {apart:.1e} of "
        f"the largest on the example; first where a channel {why}",
    )
