"""Save: pack, write beside the target, flush to the disk, rename. The old file stays until the new one is whole."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from secateur.columns import compact
from secateur.errors import WrongModel
from secateur.masks import Masks
from secateur.narrowing.narrow import structure_of
from secateur.packing.pack import Packed, pack
from secateur.packing.rounding import restored, rounded
from secateur.replacing import replacing
from secateur.report import Pruned
from secateur.storage.stored import APART, mask_key
from secateur.structure import Structure

__all__ = ["packed_model", "save"]


def save(pruned: Pruned | nn.Module, path: str | os.PathLike[str], *, dtype: str | None = None) -> None:
    """Write a pruned model, or any model, as one safetensors file: every tensor in its smallest format, tied ones once.

    Args:
        pruned: what pruning returned (masks and receipt are stored too), or a bare model.
        path: the file; an old one is replaced, and only when the new one is complete and on the disk.
        dtype: ``None`` keeps every bit. "fp16" and "bf16" round all floating values, "int8" those of two or more dimensions,
            with one scale for each index of the first.

    Raises:
        WrongModel: the model's state holds something that is no plain tensor, or a value that ``dtype`` cannot hold.
        OSError: the file cannot be written; nothing is left behind.
    """
    packed = packed_model(pruned, dtype=dtype)
    target = Path(os.path.realpath(path))  # a link stays a link
    with replacing(target) as beside:
        mode = beside.stat().st_mode
        save_file(_unshared(packed.parts), beside, metadata=packed.metadata)
        beside.chmod(mode)  # the library writes files that only their owner may read


def packed_model(pruned: Pruned | nn.Module, *, dtype: str | None = None) -> Packed:
    """What `save` writes; its ``nbytes`` is the exact size of the file.

    Raises:
        WrongModel: see `save`.
    """
    model, masks = (pruned.model, pruned.masks) if isinstance(pruned, Pruned) else (pruned, Masks())
    state = _state_of(model)
    packed = pack(state, dtype=dtype, model=type(model).__name__)
    structure = structure_of(model)
    if (
        structure and structure.graph is None and isinstance(model, fx.GraphModule) and "batch" in model.meta
    ):  # captured here
        raise WrongModel(
            "this narrowed graph cannot be captured anew when the file is loaded, for its example inputs are more than tensors: "
            "write it with torch.export.save or secateur.export.onnx"
        )
    words, apart = _masks_beside(masks, state, dtype, structure)
    of_masks = pack(apart)
    document = replace(
        packed.document,
        tensors=packed.document.tensors | of_masks.document.tensors,
        tied=packed.document.tied | of_masks.document.tied,
        masks=words,
        report=compact(pruned.report.to_dict()) if isinstance(pruned, Pruned) else None,
        structure=structure.to_dict() if structure else None,
    )
    return Packed(parts={**packed.parts, **of_masks.parts}, document=document)


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, by the names that `load_state_dict` knows."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WrongModel(f"{name!r} is {type(value).__name__}, no tensor, and cannot be stored without a pickle")
        if nn.parameter.is_lazy(value):
            raise WrongModel(f"{name!r} has no shape yet: run the model once before saving it")
    return dict(state)


def _masks_beside(
    masks: Masks, state: Mapping[str, Tensor], dtype: str | None, structure: Structure | None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """How each mask is found again, and what has to be stored for that."""
    words, apart = {}, {}
    for name, mask in masks.items():
        if mask_key(name) in state:
            raise WrongModel(
                f"the model has a tensor {mask_key(name)!r}, the place where the mask of {name!r} is stored"
            )
        here = mask.cpu()
        if structure and name in structure.kept and torch.equal(here, structure.mask(name)):
            words[name] = "structure"
            continue
        if name in state and state[name].shape == mask.shape:
            flips = here != (_as_stored(name, state[name], dtype) != 0)
            words[name] = "nonzero" if not bool(flips.any()) else "all" if bool(here.all()) else "flips"
            here = flips
        else:
            words[name] = "alone"
        if words[name] in APART:
            apart[mask_key(name)] = here
    return words, apart


def _as_stored(name: str, tensor: Tensor, dtype: str | None) -> Tensor:
    """The tensor that comes back from the file; rounding may have made zeros."""
    if dtype is None:
        return tensor.detach().cpu()
    values, scales = rounded(tensor.detach().cpu(), dtype, name)
    return restored(values, scales, tensor.dtype)


def _unshared(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts that lie in one storage, copied apart: safetensors refuses to write views of each other."""
    seen: set[int] = set()
    found = {}
    for key, part in parts.items():
        storage = part.untyped_storage().data_ptr()
        found[key] = part.clone() if part.numel() and storage in seen else part
        seen.add(storage)
    return found
