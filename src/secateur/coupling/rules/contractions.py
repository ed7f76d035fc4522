"""Products that sum over an axis: the summed index leaves from both sides, the others pass through."""

from typing import Any

from torch import Tensor

from secateur.coupling.dyeing import Dye, Layers, rule
from secateur.coupling.layering import axes, spread
from secateur.coupling.rules.pairing import pair
from secateur.coupling.rules.pointwise import pointwise


def contract(dye: Dye, a: list[Tensor], b: list[Tensor]) -> None:
    """Tie the colours (one-dimensional) that two sides put on a summed axis; without a partner they may not leave."""
    if a and b:
        pair(dye, [a, b])
    for colours in () if a and b else (*a, *b):
        dye.freeze(colours, f"meets {colours.numel()} inputs of a fixed number")


def made(dye: Dye, rows: list[Tensor], bias: Any) -> list[Tensor]:
    """The channels that a layer makes, tied with its bias."""
    vectors = list(dye.of(bias))
    if rows and vectors:
        return pair(dye, [rows, vectors])
    for v in vectors:
        dye.freeze(v, "belongs to outputs of a fixed number")
    return rows


def matmul(dye: Dye, out: Tensor, a: Tensor, b: Tensor) -> Layers:
    """``[m, k] @ [k, n]``."""
    contract(dye, [dye.along(la, 1) for la in dye.on(a, 1)], [dye.along(la, 0) for la in dye.on(b, 0)])
    rows = [spread(dye.along(la, 0), out.shape, 0) for la in dye.on(a, 0) if axes(la) == (0,)]
    columns = [spread(dye.along(la, 1), out.shape, 1) for la in dye.on(b, 1) if axes(la) == (1,)]
    return tuple(rows + columns)


@rule("mm", "matmul")
def _(dye: Dye, out: Any, a: Any, b: Any) -> Any:
    return matmul(dye, out, a, b)


@rule("mv")
def _(dye: Dye, out: Any, a: Any, b: Any) -> Any:
    contract(dye, [dye.along(la, 1) for la in dye.on(a, 1)], list(dye.of(b)))
    return tuple(dye.along(la, 0) for la in dye.on(a, 0))[:1]


@rule("dot", "vdot")
def _(dye: Dye, out: Any, a: Any, b: Any) -> Any:
    contract(dye, list(dye.of(a)), list(dye.of(b)))
    return ()


@rule("addmm", "addmv")
def _(dye: Dye, out: Any, bias: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    layers = matmul(dye, out, a, b)
    dye.put(out, layers)
    return pointwise(dye, out, out, bias)


@rule("linear")
def _(dye: Dye, out: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    last = x.dim() - 1
    contract(dye, [dye.along(la, last) for la in dye.on(x, last)], [dye.along(la, 1) for la in dye.on(weight, 1)])
    rows = made(dye, [dye.along(la, 0) for la in dye.on(weight, 0)], bias)
    rest = [la for la in dye.of(x) if last not in axes(la)]
    moved = [la.narrow(-1, 0, 1).expand(out.shape) for la in rest]
    return (*[spread(r, out.shape, out.dim() - 1) for r in rows], *moved)


def batched(dye: Dye, out: Tensor, a: Tensor, b: Tensor) -> Layers:
    """``[batch, m, k] @ [batch, k, n]``: an axis shared by both sides may be heads.

    Whole: a head leaves from both sides at once, with everything inside it. Inside: the same index leaves from every head.
    """
    left = [_settle_batch(dye, layer) for layer in dye.of(a)]
    right = [_settle_batch(dye, layer) for layer in dye.of(b)]
    left_heads, right_heads = _batch_colours(dye, left), _batch_colours(dye, right)
    contract(dye, left_heads, right_heads)
    _couple_summed(dye, [la for la in left if 2 in axes(la)], [la for la in right if 1 in axes(la)])
    passed = [la.narrow(2, 0, 1).expand(out.shape) for la in left if 1 in axes(la) and 2 not in axes(la)]
    passed += [la.narrow(1, 0, 1).expand(out.shape) for la in right if 2 in axes(la) and 1 not in axes(la)]
    heads = left_heads or right_heads
    if heads and not any(0 in axes(layer) for layer in passed):
        passed.append(spread(heads[0], out.shape, 0))
    return tuple(passed)


def _batch_colours(dye: Dye, layers: list[Tensor]) -> list[Tensor]:
    return [dye.along(la, 0) for la in layers if 0 in axes(la) and (dye.whole or axes(la) == (0,))]


def _couple_summed(dye: Dye, left: list[Tensor], right: list[Tensor]) -> None:
    """Tie what is summed over; inside whole heads nothing leaves on its own, so partners of those stay."""
    free_left = [la for la in left if not (dye.whole and 0 in axes(la))]
    free_right = [la for la in right if not (dye.whole and 0 in axes(la))]
    if not (free_left and free_right and len(free_left) == len(left) and len(free_right) == len(right)):
        for layer in [*free_left, *free_right]:
            dye.freeze(layer, "is summed against whole heads or inputs of a fixed number")
        return
    if not any(0 in axes(layer) for layer in (*free_left, *free_right)):
        pair(dye, [[dye.along(la, 2) for la in free_left], [dye.along(lb, 1) for lb in free_right]])
        return
    for la in free_left:
        for lb in free_right:
            if 0 in axes(la) and 0 in axes(lb):
                dye.tie(la.select(1, 0), lb.select(2, 0))  # [batch, k] each
            else:
                dye.tie(dye.along(la, 2), dye.along(lb, 1))


def _settle_batch(dye: Dye, layer: Tensor) -> Tensor:
    varying = axes(layer)
    if 0 not in varying or len(varying) == 1:
        return layer
    if dye.whole:
        dye.heads.append((dye.along(layer, 0), "head"))  # ties everything inside one head
    else:
        first = layer.narrow(0, 0, 1).expand_as(layer)
        dye.tie(layer, first)  # ties the same index of every head
    return layer


@rule("_trilinear")
def _(dye: Dye, out: Any, *args: Any, **kwargs: Any) -> Any:
    """Three factors, each given axes of size 1 first; then multiplied and summed over some axes (``nn.Bilinear``)."""
    summed, kept = set(args[6]), []
    for axis in range(args[0].dim() + len(args[3])):
        sides: list[list[Tensor]] = []
        for factor, added in zip(args[:3], args[3:6], strict=True):
            if axis not in added:
                own = axis - sum(d < axis for d in added)
                sides.append([dye.along(la, own) for la in dye.on(factor, own)])
        if axis in summed:
            contract(dye, *sides)
        elif found := [colours for side in sides for colours in side]:
            for colours in found[1:]:
                dye.tie(found[0], colours)
            kept.append(spread(found[0], out.shape, axis - sum(d < axis for d in summed)))
    return tuple(kept)


@rule("bmm")
def _(dye: Dye, out: Any, a: Any, b: Any) -> Any:
    return batched(dye, out, a, b)


@rule("baddbmm")
def _(dye: Dye, out: Any, bias: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    dye.put(out, batched(dye, out, a, b))
    return pointwise(dye, out, out, bias)


@rule("_grouped_mm")
def _(dye: Dye, out: Any, a: Any, b: Any, offs: Any = None, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Tokens sorted by expert times a stack of expert weights, ``[tokens, k] @ [experts, k, n]``."""
    if a.dim() != 2 or b.dim() != 3:
        for t in (a, b):
            for layer in dye.of(t):
                dye.freeze(layer, "is part of a grouped product")
        return ()
    for layer in dye.on(b, 0):
        dye.freeze(layer, "is an expert that the router chooses among")
    contract(dye, [dye.along(la, 1) for la in dye.on(a, 1)], [dye.along(la, 1) for la in dye.on(b, 1)])
    return tuple(spread(dye.along(la, 2), out.shape, 1) for la in dye.on(b, 2))
