"""Narrow what agrees: groups whose leaving changes the result stay, and the rest leaves.

A rule can be wrong for a network, and code can depend on a size where nobody sees it (`len(weight)`, noise drawn for every channel).
The comparison with the masked model finds that out, but for the network as a whole. Here the groups are tried by themselves, as
`settle_by_trial` tries those that do not run.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from secateur.coupling.groups import Coupling
from secateur.coupling.palette import Freeze
from secateur.coupling.settling import settle, settle_by_trial
from secateur.coupling.suspects import culprits
from secateur.coupling.trial import Failure
from secateur.errors import NarrowingFailed
from secateur.masks import Masks
from secateur.narrowing import narrow

__all__ = ["CHANGES", "narrow_what_agrees"]

CHANGES = "changes the result when it leaves"
_ROUNDS = 8


def narrow_what_agrees(
    model: nn.Module, coupling: Coupling, example_inputs: Any, plan: Callable[[Coupling], Masks]
) -> tuple[nn.Module, Masks, Coupling]:
    """A narrowed copy, the masks it equals, and the coupling without what had to stay.

    Args:
        model: what is narrowed.
        coupling: what `couple` found.
        example_inputs: to compare on.
        plan: the masks for a coupling.

    Raises:
        NarrowingFailed: whatever stays, the result is not that of the masked model.
    """
    for turn in range(_ROUNDS):
        masks = plan(coupling)
        if masks.kept == masks.total:
            break
        try:
            return narrow(model, masks, example_inputs, coupling=coupling), masks, coupling
        except NarrowingFailed as error:
            if coupling.graph is not None or turn == _ROUNDS - 1:
                raise
            less = _without_culprits(model, coupling, example_inputs, masks, error)
            if not less.groups():
                raise
            coupling = less
    return copy.deepcopy(model), masks, coupling


def _without_culprits(
    model: nn.Module, coupling: Coupling, example_inputs: Any, masks: Masks, error: NarrowingFailed
) -> Coupling:
    leaving = coupling.leaving(masks)

    def fails(chosen: Sequence[int]) -> Failure | None:
        some = _masks_of(coupling, {k: leaving[k] for k in chosen if bool(leaving[k].any())}, masks)
        if some.kept == some.total:
            return None
        try:
            narrow(model, some, example_inputs, coupling=coupling)
        except NarrowingFailed as reason:
            return Failure("", reason)
        return None

    held, _ = culprits(coupling, Failure("", error), fails)
    for k in held:
        coupling.freeze(k, Freeze("narrow", "", CHANGES))
    return settle_by_trial(model, example_inputs, settle(coupling, coupling.kinds), coupling.kinds)


def _masks_of(coupling: Coupling, leaving: dict[int, torch.Tensor], like: Masks) -> Masks:
    """The masks of these units alone."""
    found = {name: torch.ones_like(mask) for name, mask in like.items()}
    for k, out in leaving.items():
        group = coupling.found[k]
        for (name, dim), index in group.places.items():
            if name in found and (name, dim) not in group.scaled:
                found[name].index_fill_(dim, index[out].reshape(-1).to(found[name].device), False)
    return Masks(found)
