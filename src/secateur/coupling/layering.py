"""Layers: the dye of a tensor. Each layer colours every element; an element leaves when any of its layers' colours leaves.

An activation usually has one layer (the channel that made it); a weight has one per dimension (rows, columns). A layer has the
tensor's shape, with stride 0 along every axis on which its colours do not change, so it costs what it says.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["axes", "compress", "fit", "reshape", "spread"]


def axes(layer: Tensor) -> tuple[int, ...]:
    """The axes on which a compressed layer's colours change; none without elements."""
    if not layer.numel():
        return ()
    return tuple(d for d in range(layer.dim()) if layer.shape[d] > 1 and layer.stride(d) != 0)


def compress(layer: Tensor) -> Tensor:
    """Give stride 0 to every axis on which the colours do not change."""
    for d in axes(layer):
        first = layer.narrow(d, 0, 1)
        if torch.equal(first.expand_as(layer), layer):
            layer = first.expand_as(layer)
    return layer


def spread(colours: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """Lay one-dimensional colours along ``axis`` of ``shape``."""
    view = [1] * len(shape)
    view[axis] = -1
    return colours.reshape(view).expand(tuple(shape))


def fit(layer: Tensor, shape: Sequence[int], keep: Iterable[int]) -> Tensor | None:
    """Carry a layer to a tensor of another shape that agrees on the axes in ``keep``; None if it varies elsewhere."""
    keep = set(keep)
    for d in range(layer.dim()):
        if d in keep:
            continue
        if d in axes(layer):
            return None
        layer = layer.narrow(d, 0, 1)
    return layer.expand(tuple(shape))


def reshape(layer: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape without materialising axes on which the layer is constant."""
    old, new = tuple(layer.shape), tuple(shape)
    if old == new:
        return layer
    changing = set(axes(layer))
    small_old, small_new = list(old), list(new)
    for olds, news in _blocks(old, new):
        if not changing & set(olds):
            for d in olds:
                small_old[d] = 1
            for d in news:
                small_new[d] = 1
    for d, size in enumerate(small_old):
        if size == 1 and old[d] != 1:
            layer = layer.narrow(d, 0, 1)
    return compress(layer.reshape(small_new).expand(new))


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Split both shapes into runs of dimensions with equal products."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds, news = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(olds), j + len(news)
        while math.prod(old[d] for d in olds) != math.prod(new[d] for d in news):
            if math.prod(old[d] for d in olds) < math.prod(new[d] for d in news) and i < len(old):
                olds, i = [*olds, i], i + 1
            elif j < len(new):
                news, j = [*news, j], j + 1
            else:
                olds, i = [*olds, i], i + 1
        blocks.append((olds, news))
    return blocks
