"""Writing into places of a tensor: the axis that the places count stays, channels along the others leave from both.

``out[index, :] += source`` is how graph networks add up messages and how mixtures of experts put tokens back.
"""

from typing import Any

from torch import Tensor

from secateur.coupling.dyeing import Dye, Layers, rule
from secateur.coupling.rules.holds import hold
from secateur.coupling.rules.lookups import counted
from secateur.coupling.rules.pointwise import pointwise

_REASON = "is written to by index"


@rule("scatter", "scatter_add", "scatter_reduce")
def _(dye: Dye, out: Any, x: Any, dim: Any, index: Any, *rest: Any, **named: Any) -> Any:
    """An index has an entry for every element; unless it was made of channels itself, the trial shows whether it follows."""
    sources = [
        t for t in (index, *rest, *named.values()) if isinstance(t, Tensor) and (t is not index or dye.of(index))
    ]
    return _write(dye, out, x, sources, {dim % max(1, x.dim())})


@rule("index_add", "index_copy", "index_reduce", "index_fill")
def _(dye: Dye, out: Any, x: Any, dim: Any, index: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
    return _write(dye, out, x, [source] if isinstance(source, Tensor) else [], {dim % max(1, x.dim())})


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def _(dye: Dye, out: Any, x: Any, indices: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
    given = [i for i in indices if i is not None]
    if len(given) == 1 and given[0].dim() == x.dim() and values.numel() == 1:  # x[x < 0] = 1
        return pointwise(dye, out, x, given[0])
    where = sorted(counted("index", x, indices))
    places = max(i.dim() if i.is_floating_point() or i.element_size() > 1 else 1 for i in given)  # a mask counts as one
    if where[-1] - where[0] >= len(where) or values.dim() > x.dim() - len(where) + places:
        return _hold_all(dye, [x, values])
    return _write(dye, out, x, [_aligned(dye, values, x.dim(), where, places)], set(where))


def _aligned(dye: Dye, values: Tensor, rank: int, where: list[int], places: int) -> Tensor:
    """One of the values, with an axis for every axis of what they are written to."""
    first, whole = where[0], rank - len(where) + places
    counts = set(range(first, first + places))

    def full(t: Tensor) -> Tensor:
        return t.reshape((1,) * (whole - t.dim()) + tuple(t.shape))

    def cut(t: Tensor) -> Tensor:
        t = _first(t, counts)
        return t.reshape(*t.shape[:first], *(1 for _ in where), *t.shape[first + places :])

    kept = [cut(held) for layer in dye.of(values) if (held := hold(dye, full(layer), counts, _REASON)) is not None]
    moved = cut(full(values.detach()))
    dye.put(moved, tuple(kept))
    return moved


def _write(dye: Dye, out: Tensor, x: Tensor, sources: list[Tensor], counts: set[int]) -> Layers:
    """Tie ``x`` with what is written along the axes that no index counts."""
    first = _without(dye, x, counts)
    others = [_without(dye, t, counts) for t in sources if t.dim()]
    for d in set(range(x.dim())) - counts:
        if any(t.shape[d] not in (1, first.shape[d]) for t in others):  # only a part of the axis is written
            for t in (first, *others):
                for layer in dye.on(t, d):
                    dye.freeze(layer, _REASON)
            return ()
    return tuple(layer.expand(out.shape) for layer in pointwise(dye, first, first, *others))


def _without(dye: Dye, tensor: Tensor, counts: set[int]) -> Tensor:
    """The tensor at the first index of the axes in ``counts``, which keep their size."""
    kept = [held for layer in dye.of(tensor) if (held := hold(dye, layer, counts, _REASON)) is not None]
    first = _first(tensor.detach(), counts)
    dye.put(first, tuple(_first(layer, counts) for layer in kept))
    return first


def _first(t: Tensor, counts: set[int]) -> Tensor:
    for d in counts:
        t = t[(slice(None),) * d + (slice(0, 1),)]
    return t


@rule("masked_scatter")
def _(dye: Dye, out: Any, x: Any, mask: Any, source: Any) -> Any:
    """Rows that are replaced whole (the tokens of an image in a text) may lose channels."""
    wide = mask.expand(x.shape)
    if not bool((wide == wide[..., :1]).all()) or source.shape[-1:] != x.shape[-1:]:
        return _hold_all(dye, [x, source])
    rows = [_without(dye, t, set(range(t.dim() - 1))).reshape(-1) for t in (x, source)]
    for t, row in zip((x, source), rows, strict=True):
        dye.put(row, tuple(dye.along(la, -1) for la in dye.on(t, -1)))
    return tuple(layer.expand(out.shape) for layer in pointwise(dye, rows[0], *rows))


def _hold_all(dye: Dye, tensors: list[Tensor]) -> Layers:
    for tensor in tensors:
        for layer in dye.of(tensor):
            dye.freeze(layer, _REASON)
    return ()
