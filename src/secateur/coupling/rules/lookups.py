"""Tables that are looked up: entries stay, columns are channels."""

from typing import Any

import torch
from torch import Tensor

from secateur.coupling.dyeing import Dye, rule
from secateur.coupling.layering import compress, spread
from secateur.coupling.rules.holds import hold


@rule("embedding")
def _(dye: Dye, out: Any, weight: Any, index: Any, *args: Any, **kwargs: Any) -> Any:
    for layer in dye.on(weight, 0):
        dye.freeze(layer, "is looked up by index")
    return tuple(spread(dye.along(la, 1), out.shape, out.dim() - 1) for la in dye.on(weight, 1))


@rule("_embedding_bag", "embedding_bag", "_embedding_bag_forward_only")
def _(dye: Dye, out: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    for layer in dye.on(weight, 0):
        dye.freeze(layer, "is looked up by index")
    return [tuple(spread(dye.along(la, 1), out[0].shape, 1) for la in dye.on(weight, 1)), (), (), ()]


@rule("index_select", "gather", "take_along_dim", "take", "index")
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Indices are values, which do not follow: the entries that they count stay, what lies along other axes passes."""
    look_up = getattr(torch.ops.aten, dye.operation)
    held = counted(dye.operation, x, *args, **kwargs)
    kept = [hold(dye, layer, held, "is looked up by index") for layer in dye.of(x)]
    return tuple(compress(look_up(layer, *args, **kwargs)) for layer in kept if layer is not None)


def counted(operation: str, x: Tensor, *args: Any, **kwargs: Any) -> set[int]:
    """The axes along which an index counts."""
    if operation != "index":
        dim = args[0] if operation in ("index_select", "gather") else kwargs.get("dim", args[1] if args[1:] else None)
        return set(range(x.dim())) if dim is None else {dim % max(1, x.dim())}
    found, axis = set(), 0
    for index in args[0]:
        width = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        found |= set(range(axis, axis + width)) if index is not None else set()
        axis += width
    return found
