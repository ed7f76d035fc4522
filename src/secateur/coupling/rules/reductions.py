"""Reductions and orderings: along an axis of channels they hold it, elsewhere they pass channels through."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from secateur.coupling.dyeing import Dye, rule
from secateur.coupling.layering import axes, compress
from secateur.coupling.rules.holds import hold
from secateur.coupling.rules.pointwise import pointwise


def reduce(dye: Dye, out: Tensor, x: Tensor, dims: Iterable[int] | None, keepdim: bool) -> tuple[Tensor, ...]:
    """Drop ``dims``; layers that vary along them may leave only as a whole."""
    gone = {d % max(1, x.dim()) for d in dims} if dims else set(range(x.dim()))
    result = []
    for layer in dye.of(x):
        if axes(layer) and set(axes(layer)) <= gone:
            if dye.shrink and len(axes(layer)) == 1 and dye.operation in _STATISTICS:
                dye.blur(layer, "is part of a statistic over channels")
                continue
            dye.freeze_if_used(out, layer, "is reduced over all channels")
            continue
        held = hold(dye, layer, gone, "is reduced over all channels")
        if held is None:
            continue
        for d in sorted(gone, reverse=True):
            held = held.narrow(d, 0, 1)
            if not keepdim:
                held = held.squeeze(d)
        if held.shape == out.shape:
            result.append(compress(held))
    return tuple(result)


_STATISTICS = ("mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm")


def _dims(args: Any, kwargs: Any) -> Any:
    dim = kwargs.get("dim", args[0] if args else None)
    if isinstance(dim, bool) or dim is None or isinstance(dim, float):
        return None
    return [dim] if isinstance(dim, int) else list(dim)


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "prod",
    "std",
    "var",
    "logsumexp",
    "linalg_vector_norm",
    "any",
    "all",
    "nansum",
    "nanmean",
    "argmax",
    "argmin",
    "count_nonzero",
)
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    if dye.operation == "linalg_vector_norm":
        args = args[1:]  # the first is the order of the norm
    keep = kwargs.get("keepdim", next((a for a in args[1:] if isinstance(a, bool)), False))
    dims = _dims(args, kwargs)
    if dye.operation in ("std", "var") and args and isinstance(args[0], bool):
        dims = None
    return reduce(dye, out, x, dims, out.dim() == x.dim() if x.dim() else keep)


@rule("norm")
def _(dye: Dye, out: Any, x: Any, p: Any = None, dim: Any = None, keepdim: Any = False, **kwargs: Any) -> Any:
    return reduce(dye, out, x, [dim] if isinstance(dim, int) else dim, out.dim() == x.dim())


@rule("max", "min", "median", "mode", "kthvalue", "var_mean", "std_mean", "aminmax")
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    if args and isinstance(args[0], Tensor):
        return pointwise(dye, out, x, args[0])
    first = out[0] if isinstance(out, tuple | list) else out
    layers = reduce(dye, first, x, _dims(args, kwargs), first.dim() == x.dim())
    return [layers] * len(out) if isinstance(out, tuple | list) else layers


@rule(
    "_softmax",
    "softmax",
    "_log_softmax",
    "log_softmax",
    "cumsum",
    "cumprod",
    "sort",
    "topk",
    "argsort",
    "logcumsumexp",
    "_safe_softmax",
    "cummax",
    "cummin",
    "flip_sorted",
    "searchsorted",
    "unique_dim",
    "_fft_r2c",
    "_fft_c2c",
    "_fft_c2r",
    "softmax_int",
    "diff",
    "multinomial",
    "scatter_sorted",
)
def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    dims = _dims([a for a in args if not isinstance(a, bool)], kwargs)
    if dye.operation in ("topk", "kthvalue"):
        dims = [args[1] if len(args) > 1 else kwargs.get("dim", -1)]
    held = {d % max(1, x.dim()) for d in (dims if dims is not None else [-1])}
    first = out[0] if isinstance(out, tuple | list) else out
    layers = []
    for layer in dye.of(x):
        kept = hold(dye, layer, held, "is ordered or normalised over all channels")
        if kept is not None:
            for d in held:
                kept = kept.narrow(d, 0, 1)
            layers.append(kept.expand(first.shape))
    passed = tuple(layers)
    return [passed] * len(out) if isinstance(out, tuple | list) else passed
