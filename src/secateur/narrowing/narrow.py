"""`narrow`: a masked network becomes a smaller one that computes the same.

Channels whose every weight is masked leave for good: weights shrink, attributes follow, inputs and outputs keep their shape. Then
both are run on the example and compared; a difference is an error, and everything is put back.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from secateur.coupling import Coupling, couple
from secateur.cutting import cut_
from secateur.errors import NarrowingFailed, NothingToPrune, WrongModel
from secateur.graphs import copied
from secateur.masks import Masks
from secateur.narrowing.agreement import (
    comparable,
    disagreement,
    disagreement_on_reflection,
    narrowed_outputs,
    outputs_of,
)
from secateur.narrowing.recapturing import captured_from
from secateur.structure import Structure

__all__ = ["cut_copy", "narrow", "remember_structure_", "structure_of"]

_ATTRIBUTE = "secateur_structure"
_NOTHING = (
    "no channel is masked in all of its places, so nothing can leave; prune with granularity='channel', or see "
    "couple(model, example_inputs).groups() for what a channel consists of"
)
_NO_NUMBERS = (
    "the masked model gives NaN or infinity everywhere on the example, so the narrowed one cannot be compared with it: look at the "
    "example, and for NaN among weights and buffers such as running_var"
)
_ADVICE = "Find the layer with couple(model, example_inputs).explain('...') and exclude it with ignore=[...]"


def narrow(
    model: nn.Module,
    masks: Masks | Mapping[str, Tensor],
    example_inputs: Any,
    *,
    coupling: Coupling | None = None,
    optimizer: Any = None,
    inplace: bool = False,
    tolerance: float = 1e-4,
) -> nn.Module:
    """Take the channels that ``masks`` remove entirely out of the network.

    Args:
        model: any module that runs on ``example_inputs``.
        masks: which weights stay, by parameter name, bool; zeros elsewhere are kept as zeros.
        example_inputs: a tensor, a tuple, or a dict of keyword inputs.
        coupling: what `couple` found, if it was run before.
        optimizer: carry its state along (implies ``inplace``).
        inplace: narrow this very model, so that parameters keep their identity; otherwise a copy.
        tolerance: largest relative difference to the masked model on the example; where ``coupling`` let norms shrink, outputs
            differ, and only their shapes are compared.

    Returns:
        The narrowed model, of the same class, or a graph module if ``coupling`` fell back to a graph (with ``inplace`` it then holds
        the model's own parameters, and the model itself is no longer of use). It remembers its `Structure`, which
        `secateur.save` writes; one that was narrowed before remembers how it differs from its original class.

    Raises:
        NothingToPrune: no channel is masked entirely.
        NarrowingFailed: the narrowed model differs from the masked one, or gives no finite number to compare; the model is as it
            was before.
    """
    masks = masks if isinstance(masks, Masks) else Masks(dict(masks))
    masks.check(model)
    inplace |= optimizer is not None
    earlier = structure_of(model)
    coupling = coupling or couple(model, example_inputs)
    structure = coupling.structure_for(masks)
    if not structure.kept:
        raise NothingToPrune(_NOTHING)
    if coupling.inexact(structure):
        tolerance = math.inf
    if coupling.graph is not None:
        structure = replace(structure, graph=captured_from(coupling.graph, example_inputs))
    thin = _to_cut(model, coupling, inplace=inplace)
    kept = {name: p.detach().clone() for name, p in thin.named_parameters() if name in masks} if inplace else {}
    masks.apply_(thin)
    try:
        _cut_and_compare_(thin, structure, example_inputs, optimizer, tolerance)
    except BaseException:
        with torch.no_grad():
            for name, value in kept.items():
                thin.get_parameter(name).copy_(value)
        raise
    _remember_more_(thin, earlier, structure)
    return thin


def _cut_and_compare_(
    thin: nn.Module, structure: Structure, example_inputs: Any, optimizer: Any, tolerance: float
) -> None:
    """Cut a masked model; where it then gives something else, nothing is cut, and that is raised."""
    expected = outputs_of(thin, example_inputs)
    undo = cut_(thin, structure, optimizer)
    try:
        if not comparable(expected):
            raise NarrowingFailed(_NO_NUMBERS)
        failure = disagreement(expected, narrowed_outputs(thin, example_inputs), tolerance)
        if failure:
            undo()
            failure = disagreement_on_reflection(thin, structure, example_inputs, tolerance, failure)
            undo = cut_(thin, structure, optimizer)
        if failure:
            raise NarrowingFailed(f"{failure}; the model was left as it was. {_ADVICE}")
    except BaseException:
        undo()
        raise


def cut_copy(model: nn.Module, coupling: Coupling, structure: Structure) -> nn.Module:
    """A copy of ``model`` (or of its graph) cut to ``structure``, to measure what it costs; it is not compared with anything."""
    thin = _to_cut(model, coupling, inplace=False)
    cut_(thin, structure)
    _remember_more_(thin, structure_of(model), structure)
    return thin


def remember_structure_(model: nn.Module, structure: Structure) -> None:
    """Leave a note on a narrowed model of how it was narrowed; a plain attribute, which copies and pickles with it."""
    model.__dict__[_ATTRIBUTE] = structure
    if isinstance(model, GraphModule):
        model.meta[_ATTRIBUTE] = structure  # the only thing of its own that a copy of a graph keeps


def _remember_more_(thin: nn.Module, earlier: Structure | None, structure: Structure) -> None:
    remember_structure_(thin, structure if earlier is None or structure.graph else earlier.then(structure))


def structure_of(model: nn.Module) -> Structure | None:
    """How ``model`` was narrowed, or None if it was not."""
    found = getattr(model, _ATTRIBUTE, None) or getattr(model, "meta", {}).get(_ATTRIBUTE)
    return found if isinstance(found, Structure) else None


def _to_cut(model: nn.Module, coupling: Coupling, *, inplace: bool) -> nn.Module:
    """The model or its graph, or a copy that can be cut without a trace."""
    if coupling.graph is None:
        return model if inplace else copied(model)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if inplace:
        if any(own.get(name) is not p for name, p in coupling.graph.named_parameters()):
            raise WrongModel(
                "the graph in coupling= is of another model: call couple(model, ..., fallback='graph') again"
            )
        return coupling.graph.train(model.training)
    thin = copied(coupling.graph)
    with torch.no_grad():
        for name, tensor in [*thin.named_parameters(), *thin.named_buffers()]:
            tensor.copy_(own.get(name, tensor))
    return thin.train(model.training)
