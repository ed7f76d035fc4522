"""Narrow what agrees: groups whose leaving changes the result stay, and the rest leaves.

A rule can be wrong for a network, and code can depend on a size where nobody sees it (`len(weight)`, noise drawn for every channel).
The comparison with the masked model finds that out, but for the network as a whole. Here the groups are tried by themselves, as
`settle_by_trial` tries those that do not run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.coupling.groups import Coupling
from secateur.coupling.palette import Freeze
from secateur.coupling.settling import settle, settle_by_trial
from secateur.coupling.solving import SizesDisagree
from secateur.coupling.suspects import culprits
from secateur.coupling.trial import Failure
from secateur.errors import NarrowingFailed
from secateur.graphs import copied
from secateur.masks import Masks
from secateur.narrowing.narrow import narrow

__all__ = ["CHANGES", "Narrowed", "narrow_what_agrees"]

CHANGES = "changes the result when it leaves"
_ROUNDS = 8


@dataclass(frozen=True)
class Narrowed:
    """A smaller network and what it was made from.

    Args:
        model: the narrowed copy; an unchanged one where the masks remove nothing.
        source: what was narrowed; it keeps its shape.
        masks: what left, on the names of ``source``.
        coupling: what left together.
    """

    model: nn.Module
    source: nn.Module
    masks: Masks
    coupling: Coupling


def narrow_what_agrees(
    model: nn.Module, coupling: Coupling, example_inputs: Any, choose: Callable[[Coupling], tuple[nn.Module, Masks]]
) -> Narrowed:
    """Narrow; where the result is not the masked model's, the groups to blame stay, and ``choose`` is asked again.

    Args:
        model: what it was found on.
        coupling: what `couple` found.
        example_inputs: to compare on.
        choose: the model to narrow and its masks, for a coupling.

    Raises:
        NarrowingFailed: whatever stays, the result is not that of the masked model.
    """
    for turn in range(_ROUNDS):
        try:
            source, masks = choose(coupling)
            if masks.kept == masks.total:
                break
            return Narrowed(narrow(source, masks, example_inputs, coupling=coupling), source, masks, coupling)
        except SizesDisagree as error:
            coupling = _with_any_width(model, coupling, example_inputs, error, last=turn == _ROUNDS - 1)
        except NarrowingFailed as error:
            if coupling.graph is not None or turn == _ROUNDS - 1:
                raise
            less = _without_culprits(source, coupling, example_inputs, masks, error)
            if not less.groups():
                raise
            coupling = less
    return Narrowed(copied(source), source, masks, coupling)


def _with_any_width(
    model: nn.Module, coupling: Coupling, example_inputs: Any, error: SizesDisagree, *, last: bool
) -> Coupling:
    """The coupling without groups that can only have some widths."""
    if coupling.graph is None and not last:
        less = settle_by_trial(model, example_inputs, coupling, coupling.kinds, widths="any")
        if less.groups() and len(less.groups()) < len(coupling.groups()):
            return less
    raise NarrowingFailed(
        f"the code of {type(model).__name__} allows only some widths: {error}; ask for half or a quarter of the channels (scope='layer'), "
        "or leave these layers alone with ignore="
    ) from error


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
