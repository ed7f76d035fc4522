"""Run a model on an example, whatever form the example and the outputs have."""

import inspect
from typing import Any

from torch import Tensor, nn

__all__ = ["results_of", "run", "tensors_of"]


def run(model: nn.Module, example_inputs: Any) -> Any:
    """Call ``model`` with a tensor, a tuple of arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    return model(*example_inputs) if isinstance(example_inputs, tuple | list) else model(example_inputs)


def results_of(model: nn.Module, out: Any) -> list[Tensor]:
    """Every tensor that ``model`` returned, less the state that it takes back.

    An object of a class of its own (a cache of keys and values) that ``forward`` accepts under the name it is returned by goes back
    into the same model: its sizes may follow. Outputs keep theirs.
    """
    if not isinstance(out, dict):
        return tensors_of(out)
    accepted = inspect.signature(model.forward).parameters
    return tensors_of({key: value for key, value in out.items() if key not in accepted or isinstance(value, _PLAIN)})


_PLAIN = (Tensor, dict, list, tuple, str, int, float, type(None))


def tensors_of(tree: Any, seen: set[int] | None = None) -> list[Tensor]:
    """Every tensor inside tuples, dicts, dataclasses and plain objects, in order."""
    seen = set() if seen is None else seen
    if isinstance(tree, Tensor):
        return [tree]
    if id(tree) in seen or isinstance(tree, str | int | float | bool | type(None)):
        return []
    seen.add(id(tree))
    if isinstance(tree, dict):
        return [t for value in tree.values() for t in tensors_of(value, seen)]
    if isinstance(tree, tuple | list):
        return [t for value in tree for t in tensors_of(value, seen)]
    return [t for value in getattr(tree, "__dict__", {}).values() for t in tensors_of(value, seen)]
