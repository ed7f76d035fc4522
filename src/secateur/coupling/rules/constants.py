"""Tensors that nothing owns. A constant fill follows whatever size it meets; other constants have a fixed size."""

from typing import Any

from torch import Tensor

from secateur.coupling.dyeing import Dye, rule
from secateur.coupling.rules.moves import joker


@rule(
    "zeros",
    "ones",
    "full",
    "empty",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "empty_permuted",
    "rand",
    "randn",
)
def _(dye: Dye, out: Any, *args: Any, **kwargs: Any) -> Any:
    if not (out.is_floating_point() or out.is_complex()) or out.numel() > 1 << 22:
        return ()
    return tuple(joker(dye, out, axis) for axis in range(out.dim()) if out.shape[axis] > 1)


@rule("zeros_like", "ones_like", "full_like", "empty_like")
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return dye.of(x)


@rule(
    "arange",
    "linspace",
    "scalar_tensor",
    "eye",
    "randint",
    "randperm",
    "nonzero",
    "_local_scalar_dense",
    "is_same_size",
    "bincount",
    "histc",
    "normal",
)
def _(dye: Dye, out: Any, *args: Any, **kwargs: Any) -> Any:
    for a in args:
        if isinstance(a, Tensor):
            for layer in dye.of(a):
                dye.freeze(layer, "decides a size or a place")
    return ()
