"""Which layers of several tensors along one axis belong together.

An axis that was merged from two carries a layer for each: inputs repeat (a, a, b, b), grid points take turns (1, 2, 1, 2). Layers that
change at the same positions are one and the same; what has no such partner elsewhere may not leave on its own.
"""

import torch
from torch import Tensor

from secateur.coupling.dyeing import Dye
from secateur.coupling.layering import axes

__all__ = ["pair"]


def pair(dye: Dye, sides: list[list[Tensor]]) -> list[Tensor]:
    """Tie the layers of all sides, which have one shape, and return those that they agree on; one at least.

    Args:
        dye: gathers the ties.
        sides: the layers of each tensor along the axis; none is empty.
    """
    if all(len(side) == 1 for side in sides):
        return _tie(dye, [layer for side in sides for layer in side])
    seen = [_by_pattern(side, sides) for side in sides]
    common = [pattern for pattern in seen[0] if all(pattern in found for found in seen)]
    if not common:  # one side is finer: its channels leave as the coarser ones do
        finest = [max(side, key=lambda layer: len(torch.unique(layer))) for side in sides]
        _hold_others(dye, sides, finest)
        return _tie(dye, finest)
    chosen = [[layer for found in seen for layer in found[pattern]] for pattern in common]
    _hold_others(dye, sides, [layer for some in chosen for layer in some])
    return [_tie(dye, some)[0] for some in chosen]


def _tie(dye: Dye, layers: list[Tensor]) -> list[Tensor]:
    for layer in layers[1:]:
        dye.tie(layers[0], layer)
    return layers[:1]


def _hold_others(dye: Dye, sides: list[list[Tensor]], chosen: list[Tensor]) -> None:
    for layer in (layer for side in sides for layer in side):
        if not any(layer is one for one in chosen):
            dye.freeze(layer, "shares its axis with channels and has no partner")


def _by_pattern(side: list[Tensor], sides: list[list[Tensor]]) -> dict[bytes, list[Tensor]]:
    varying = {d for some in sides for layer in some for d in axes(layer)}
    found: dict[bytes, list[Tensor]] = {}
    for layer in side:
        small = layer
        for d in range(layer.dim()):
            if d not in varying:
                small = small.narrow(d, 0, 1)
        found.setdefault(_pattern(small.reshape(-1)), []).append(layer)
    return found


def _pattern(colours: Tensor) -> bytes:
    """For every position the first one of the same colour: equal for layers that change alike, whatever their colours."""
    _, place = torch.unique(colours, return_inverse=True)
    positions = torch.arange(len(colours))
    first = torch.full_like(positions, len(colours)).scatter_reduce_(0, place, positions, "amin")
    return first[place].numpy().tobytes()
