"""Axes that keep their size."""

from torch import Tensor

from secateur.coupling.dyeing import Dye
from secateur.coupling.layering import axes


def hold(dye: Dye, layer: Tensor, held: set[int], reason: str) -> Tensor | None:
    """Keep the axes in ``held`` as they are: a layer may leave only as a whole along them, or not at all."""
    varying = set(axes(layer))
    if not varying & held:
        return layer
    if varying <= held or not dye.whole:
        dye.freeze(layer, reason)
        return None
    first = layer
    for d in varying & held:
        first = first.narrow(d, 0, 1)
    dye.tie(layer, first.expand_as(layer))
    return layer
