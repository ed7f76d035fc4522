"""Checkpoints of runs: nested dictionaries and lists of tensors, numbers and words, as one safetensors file, written whole or not at all.

The tensors lie in the file by number, and its header holds the rest as JSON, in which ``{"tensor": 3}`` stands for the fourth tensor.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import BadFile
from secateur.replacing import replacing

__all__ = ["read_checkpoint", "write_checkpoint"]

_KEY = "secateur_checkpoint"


def write_checkpoint(path: str | Path, tree: Any) -> None:
    """Write ``tree`` in place of what was there.

    Args:
        path: the file; its folder is made where it does not exist.
        tree: dictionaries with keys of text or whole numbers, lists, tuples (which come back as lists), tensors, numbers, text, None.

    Raises:
        TypeError: there is something else in it.
    """
    tensors: dict[str, Tensor] = {}
    said = json.dumps(_flat(tree, tensors))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as beside:
        save_file(tensors or {"0": torch.zeros(0)}, beside, metadata={_KEY: said})


def read_checkpoint(path: str | Path) -> Any:
    """What `write_checkpoint` wrote, on the CPU.

    Raises:
        BadFile: it is damaged, or something else.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            said = (file.metadata() or {})[_KEY]
            return _deep(json.loads(said), file)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadFile(
            f"{path} is no checkpoint of a run, or a damaged one ({type(error).__name__}: {error}); start afresh"
        ) from error


def _flat(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value.detach().cpu().clone().contiguous()
        return {"tensor": len(tensors) - 1}
    if isinstance(value, dict):
        return {"items": [[_plain(key), _flat(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_flat(item, tensors) for item in value]
    return _plain(value)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: {value!r:.80}")


def _deep(value: Any, file: Any) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return file.get_tensor(str(value["tensor"]))
        return {key: _deep(item, file) for key, item in value["items"]}
    return [_deep(item, file) for item in value] if isinstance(value, list) else value
