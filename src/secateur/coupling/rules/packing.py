"""Sequences of different lengths, packed for recurrent layers: padding goes, features stay where they are."""

from typing import Any

from torch import Tensor

from secateur.coupling.dyeing import Dye, Layers, rule
from secateur.coupling.rules.holds import hold


@rule("_pack_padded_sequence")
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """``[batch, time, features]`` to ``[steps, features]``, and how many sequences last that long."""
    return [_carry(dye, x, out[0], 2, 1), ()]


@rule("_pad_packed_sequence")
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """The way back."""
    return [_carry(dye, x, out[0], 1, 2), ()]


def _carry(dye: Dye, x: Tensor, out: Tensor, before: int, after: int) -> Layers:
    """Layers along features, which follow ``before`` other axes in ``x`` and ``after`` in ``out``."""
    found = [hold(dye, layer, set(range(before)), "is packed by length") for layer in dye.of(x)]
    rows = [layer[(0,) * before] for layer in found if layer is not None]
    return tuple(row[(None,) * after].expand(out.shape) for row in rows)
