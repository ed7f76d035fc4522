"""What a file of a compiled model says: its programs, how it is called, and the weights that they name."""

import inspect
import itertools
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from secateur.errors import UnknownOperation
from secateur.examples import Example
from secateur.runtime.batches import MANY, batch_sizes, row_by_row
from secateur.runtime.capturing import captured
from secateur.runtime.compiling import program
from secateur.runtime.emitting import Constants
from secateur.runtime.graph import Graph
from secateur.runtime.trying import growing, sized, why_alone
from secateur_engine.nesting import written

__all__ = ["document_of"]


def document_of(
    module: nn.Module, example: Example, *, batch: Any, cache: int, **how: Any
) -> tuple[dict[str, Any], Constants]:
    """A program for every batch size, and how the model is called; and the weights."""
    axis = 1 if cache else 0
    alone, splits = "" if cache else why_alone(module, example), growing(example, axis)
    constants, programs = Constants(), dict[int, tuple[dict[str, Any], dict[str, Any]]]()

    def made(size: int) -> tuple[dict[str, Any], dict[str, Any]]:
        graph = captured(module, sized(example, size, axis))
        document, said = _program(graph, constants, size=size, splits=splits, cache=cache, **how)
        return document | {"gives": graph.result}, said

    sizes = batch_sizes(example, batch, axis, every=bool(alone))
    if not alone and not cache and max(sizes) > 1:
        with suppress(UnknownOperation):  # of one row; it may have none where it is not asked for
            programs[1] = made(1)
        apart = bool(programs) and row_by_row(programs[1][0], constants.arrays, max(sizes))
        if apart or len(sizes) > 1:
            alone = why_alone(module, example, min(max(sizes), MANY))
        if alone or (not apart and 1 not in sizes):
            constants, programs = Constants(), {}
        elif apart:
            programs[1][1]["notes"].append(
                "the rows of a batch run one after the other, or side by side on their own threads"
            )
        sizes = batch_sizes(example, batch, axis, every=True) if alone else [1] if apart else sizes
    for size in sizes:
        programs[size] = programs.get(size) or made(size)
    documents, labels = ([programs[size][k] for size in sizes] for k in (0, 1))
    result = documents[-1]["gives"]
    if not alone:  # otherwise a list may have an entry for each row
        for document in documents:
            del document["gives"]
    about = {"axis": axis, "cache": cache, "values": how["values"], "takes": _takes(module, example), "gives": result}
    return {"programs": documents, "labels": labels, **about} | ({"alone": alone} if alone else {}), constants


def _takes(module: nn.Module, example: Example) -> dict[str, Any]:
    """How the inputs are nested, and the names of the positional ones."""
    counter, names = itertools.count(), list[str]()

    def number(leaf: Any) -> int | None:
        return next(counter) if isinstance(leaf, Tensor) else None

    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    with suppress(ValueError, TypeError):  # some forwards do not say what they take
        names += [name for name, p in inspect.signature(module.forward).parameters.items() if p.kind in positional]
    args = [written(arg, number) for arg in example.args]
    return {
        "args": args,
        "kwargs": [[key, written(arg, number)] for key, arg in example.kwargs.items()],
        "names": names,
    }


def _program(graph: Graph, constants: Constants, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return program(graph, constants, **how)
    except NotImplementedError as error:
        raise UnknownOperation(str(error)) from error
