"""Operations that run in torch between two steps of the engine: read back from how they were written down."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secateur.errors import BadFile

__all__ = ["runner"]


def runner(arrays: Sequence[NDArray[Any]]) -> Any:
    """A function that runs one of the operations of a program on numpy arrays."""

    def run(other: dict[str, Any], inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in inputs]
        args, kwargs = _read(other["args"], tensors, arrays), _read(other["kwargs"], tensors, arrays)
        with torch.no_grad():
            made = _target(other["name"])(*args, **kwargs)
        return [m.to(torch.float32).numpy() for m in (made if isinstance(made, list | tuple) else [made])]

    return run


def _target(name: str) -> Any:
    space, *rest = name.split(".")
    if space != "aten" or len(rest) != 2:  # a file cannot name anything else
        raise BadFile(f"{name!r} is no operation of torch")
    return getattr(getattr(torch.ops.aten, rest[0]), rest[1])


def _read(tree: Any, tensors: list[torch.Tensor], arrays: Sequence[NDArray[Any]]) -> Any:
    if isinstance(tree, list):
        return [_read(leaf, tensors, arrays) for leaf in tree]
    if not isinstance(tree, dict):
        return tree
    if "input" in tree:
        return tensors[tree["input"]]
    if "constant" in tree:
        array = np.array(arrays[tree["constant"]], np.float32).reshape(tree["shape"])
        return torch.from_numpy(array).to(getattr(torch, tree["dtype"]))
    if "device" in tree:
        return torch.device(tree["device"])
    if "torch" in tree:
        return getattr(torch, tree["torch"])
    if "float" in tree:
        return float(tree["float"])
    return {key: _read(leaf, tensors, arrays) for key, leaf in tree["dict"].items()}
