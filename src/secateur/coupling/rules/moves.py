"""Operations that only move elements: executed again on the colours, so they need no rule of their own."""

from typing import Any

import torch
from torch import Tensor

from secateur.coupling.dyeing import Dye, Layers, rule
from secateur.coupling.layering import axes, compress, reshape, spread
from secateur.coupling.rules.holds import hold

MOVES = """permute transpose t unsqueeze squeeze select slice unbind diagonal
flip roll repeat repeat_interleave unfold pixel_shuffle pixel_unshuffle channel_shuffle movedim rot90 swapaxes narrow
expand_copy permute_copy select_copy slice_copy view_as_real view_as_complex channel_shuffle native_channel_shuffle masked_select
diag_embed block_diag"""


@rule(*MOVES.split())
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    name = dye.operation
    if name == "transpose_" or name.endswith("_"):
        name = name[:-1]
    if not dye.of(x):
        return ()
    op = getattr(torch.ops.aten, name)
    if name in ("view_as_real", "view_as_complex"):
        return _complex(dye, out, x, name)
    picks = name.removesuffix("_copy") in ("select", "slice", "unbind")
    kept = _unpicked(dye, out, x, *args, **kwargs) if picks else dye.of(x)
    results = [op(layer, *args, **kwargs) for layer in kept]
    if isinstance(out, tuple | list):
        return [tuple(compress(r[i]) for r in results) for i in range(len(out))]
    return tuple(compress(r) for r in results)


def _unpicked(dye: Dye, out: Any, x: Tensor, dim: int = 0, *args: Any, **kwargs: Any) -> Layers:
    """What passes; a channel that code takes alone, by its position, stays where it is. Axes beside it, such as heads, are not asked."""
    first = out[0] if isinstance(out, tuple | list) else out
    dim %= x.dim()
    sliced = first.dim() == x.dim()
    if sliced and first.shape[dim] != 1:
        return dye.of(x)
    alone = [layer for layer in dye.of(x) if dim in axes(layer) and (sliced or axes(layer) == (dim,))]
    held = {id(layer): hold(dye, layer, {dim}, "is picked by its position") for layer in alone}
    found = [held.get(id(layer), layer) for layer in dye.of(x)]
    return tuple(layer for layer in found if layer is not None)


@rule("tril", "triu")
def _(dye: Dye, out: Any, x: Any, diagonal: int = 0) -> Any:
    """A triangle stays one if the same rows and columns leave, in order."""
    rows, columns = (x.dim() - 2), (x.dim() - 1)
    sides = [[dye.along(la, axis) for la in dye.on(x, axis)] for axis in (rows, columns)]
    near = (0, -1) if dye.operation.startswith("tril") else (0, 1)
    if all(sides) and x.shape[rows] == x.shape[columns] and diagonal in near:
        for colours in [*sides[0][1:], *sides[1]]:
            dye.tie(sides[0][0], colours)
        return dye.of(x)
    for colours in [*sides[0], *sides[1]]:
        dye.freeze(colours, "is cut along a diagonal")
    return tuple(la for la in dye.of(x) if not {rows, columns} & set(axes(la)))


@rule("as_strided")
def _(dye: Dye, out: Any, x: Any, size: Any, stride: Any, offset: Any = None) -> Any:
    """Speaks of memory, so the colours are laid out in memory as the tensor is."""
    start = x.storage_offset()
    layers = []
    for layer in dye.of(x):
        memory = torch.zeros(x.untyped_storage().nbytes() // x.element_size(), dtype=torch.long)
        memory.as_strided(x.shape, x.stride(), start).copy_(layer)
        layers.append(compress(memory.as_strided(size, stride, start if offset is None else offset)))
    return tuple(layers)


def _complex(dye: Dye, out: Tensor, x: Tensor, name: str) -> Layers:
    if name == "view_as_real":
        return tuple(layer.unsqueeze(-1).expand(out.shape) for layer in dye.of(x))
    for layer in dye.of(x):  # the two parts of a number stay together
        if layer.dim() - 1 in axes(layer):
            dye.tie(layer.select(-1, 0), layer.select(-1, 1))
    return tuple(layer.select(-1, 0) for layer in dye.of(x))


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "view_copy", "_reshape_copy")
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    if x.is_complex() != out.is_complex() or x.numel() != out.numel():
        for layer in dye.of(x):
            dye.freeze(layer, "is reinterpreted as another type")
        return ()
    layers = [reshape(layer, out.shape) for layer in dye.of(x)]
    return tuple(layer for layer in layers if not _repeats(dye, layer, layers))


def _repeats(dye: Dye, layer: Tensor, layers: list[Tensor]) -> bool:
    """An expanded axis that was merged with channels repeats them (grouped queries); how often stays as it is."""
    if not dye.from_nobody(layer):
        return False
    owned = {d for other in layers if not dye.from_nobody(other) for d in axes(other)}
    if not owned & set(axes(layer)):
        return False
    dye.freeze(layer, "says how often channels are repeated")
    return True


@rule("expand", "broadcast_to")
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    layers = [layer.expand(out.shape) for layer in dye.of(x)]
    if dye.of(x):  # an expanded axis has no owner: its size follows whatever it meets
        for axis in range(out.dim()):
            d = axis - out.dim() + x.dim()
            if out.shape[axis] > 1 and (d < 0 or x.shape[d] == 1):
                layers.append(joker(dye, out, axis))
    return tuple(layers)


def joker(dye: Dye, out: Tensor, axis: int) -> Tensor:
    """Colours for an axis that no parameter owns."""
    view = [1] * out.dim()
    view[axis] = -1
    return dye.palette.fresh(out.shape[axis]).view(view).expand(out.shape)


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "split_copy",
    "split_with_sizes_copy",
    "tensor_split",
    "unsafe_split",
    "unsafe_chunk",
    "unsafe_split_with_sizes",
)
def _(dye: Dye, out: Any, x: Any, sizes: Any, dim: Any = 0) -> Any:
    widths = [o.shape[dim] for o in out]
    parts = [torch.split(layer, widths, dim) for layer in dye.of(x)]
    if len(set(widths)) == 1:  # equal pieces must stay equal: the code may count on it
        for layer, pieces in zip(dye.of(x), parts, strict=True):
            if dim % layer.dim() in axes(layer):
                for piece in pieces[1:]:
                    dye.tie(pieces[0], piece)
    return [tuple(compress(p[i]) for p in parts) for i in range(len(out))]


@rule("glu")
def _(dye: Dye, out: Any, x: Any, dim: Any = -1) -> Any:
    first = []
    for layer in dye.of(x):
        value, gate = layer.chunk(2, dim)
        if dim % layer.dim() in axes(layer):
            dye.tie(value, gate)
        first.append(compress(value))
    return tuple(first)


@rule("cat", "concat", "concatenate")
def _(dye: Dye, out: Any, tensors: Any, dim: Any = 0) -> Any:
    tensors = [t for t in tensors if t.numel()]
    return concatenate(dye, out, list(tensors), dim % out.dim())


@rule("stack")
def _(dye: Dye, out: Any, tensors: Any, dim: Any = 0) -> Any:
    dim %= out.dim()
    pieces = []
    for t in tensors:
        piece = t.unsqueeze(dim)
        dye.put(piece, tuple(layer.unsqueeze(dim) for layer in dye.of(t)))
        pieces.append(piece)
    return concatenate(dye, out, pieces, dim)


def concatenate(dye: Dye, out: Tensor, tensors: list[Tensor], dim: int) -> Layers:
    """Along ``dim`` colours stand in a row; on other axes the pieces must agree."""
    if not any(dye.of(t) for t in tensors):
        return ()
    result = [_in_a_row(dye, tensors, dim)] if any(dye.on(t, dim) for t in tensors) else []
    result += _agreed_table(dye, out, tensors, dim)
    for axis in range(out.dim()):
        if axis != dim and out.shape[axis] > 1 and not any(axis in axes(done) for done in result):
            colours = _agreed(dye, tensors, axis)
            if colours is not None:
                result.append(spread(colours, out.shape, axis))
    return tuple(result)


def _in_a_row(dye: Dye, tensors: list[Tensor], dim: int) -> Tensor:
    row = []
    for t in tensors:
        layers = dye.on(t, dim)
        for layer in layers[1:]:
            dye.tie(layers[0], layer)
        row.append(layers[0] if layers else torch.zeros((), dtype=torch.long).expand(t.shape))  # may not leave
    varying = {d for layer in row for d in axes(layer)} | {dim}
    thin = [layer[tuple(slice(None) if d in varying else slice(0, 1) for d in range(layer.dim()))] for layer in row]
    joined = torch.cat(thin, dim)
    shape = [joined.shape[d] if d == dim else size for d, size in enumerate(row[0].shape)]
    return compress(joined.expand(shape))


def _agreed_table(dye: Dye, out: Tensor, tensors: list[Tensor], dim: int) -> list[Tensor]:
    """The layer over several axes (heads and what is inside them) that every piece has alike."""
    tables = [[la for la in dye.of(t) if len(axes(la)) > 1 and dim not in axes(la)] for t in tensors]
    if any(len(found) != 1 or axes(found[0]) != axes(tables[0][0]) for found in tables):
        return []
    thin = [found[0].narrow(dim, 0, 1) for found in tables]
    for table in thin[1:]:
        dye.tie(thin[0], table)
    return [thin[0].expand(out.shape)]


def _agreed(dye: Dye, tensors: list[Tensor], axis: int) -> Tensor | None:
    """The colours that all pieces share along ``axis``; None where nothing may leave."""
    found = [[dye.along(layer, axis) for layer in dye.on(t, axis)] for t in tensors]
    everyone = [colours for piece in found for colours in piece]
    for colours in everyone[1:]:
        dye.tie(everyone[0], colours)
    if everyone and not all(found):
        dye.freeze(everyone[0], f"is joined with a tensor of fixed size {tensors[0].shape[axis]}")
        return None
    return everyone[0] if everyone else None


@rule("constant_pad_nd", "pad")
def _(dye: Dye, out: Any, x: Any, pad: Any, *args: Any, **kwargs: Any) -> Any:
    layers = []
    for layer in dye.of(x):
        small, varying, amounts = layer, axes(layer), list(pad)
        for d in range(x.dim()):
            if d not in varying:
                small = small.narrow(d, 0, 1)
                place = 2 * (x.dim() - 1 - d)
                if place < len(amounts):
                    amounts[place] = amounts[place + 1] = 0
        layers.append(torch.constant_pad_nd(small, amounts, 0).expand(out.shape))  # padding itself may not leave
    return tuple(layers)
