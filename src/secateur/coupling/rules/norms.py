"""Normalisations: per channel they pass channels through; across channels they hold them."""

from typing import Any

from torch import Tensor, nn

from secateur.coupling.dyeing import Dye, rule
from secateur.coupling.layering import axes, spread
from secateur.coupling.rules.holds import hold

_STATISTIC = "is part of the statistic of a norm"


def channelwise(dye: Dye, x: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
    """Channels of ``x`` (axis 1) leave with the entries of per-channel vectors."""
    known = dye.on(x, 1)
    vectors = [layer for p in parameters for layer in dye.of(p)]
    if not known:
        for v in vectors:
            dye.freeze(v, "normalises channels of a fixed number")
        return dye.of(x)
    first = dye.along(known[0], 1)
    for v in [dye.along(k, 1) for k in known[1:]] + [v.reshape(-1) for v in vectors]:
        dye.tie(first, v)
    return dye.of(x)


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "batch_norm",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "miopen_batch_norm",
)
def _(
    dye: Dye,
    out: Any,
    x: Any,
    weight: Any = None,
    bias: Any = None,
    mean: Any = None,
    var: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    vectors = [v for v in (weight, bias, mean, var) if isinstance(v, Tensor)]
    training = dye.operation in ("native_batch_norm", "_native_batch_norm_legit") and (
        args[0] if args else not isinstance(mean, Tensor)
    )
    if dye.operation == "_native_batch_norm_legit" and isinstance(mean, bool):  # the form without running statistics
        training = mean
    if training:  # statistics over the other axes: what varies there is normalised together
        for layer in dye.of(x):
            if dye.shrink and len(axes(layer)) == 1 and axes(layer) != (1,):
                dye.blur(layer, _STATISTIC)  # standardised weights
            elif set(axes(layer)) - {1}:
                dye.freeze(layer, "is normalised over")
    return (
        [channelwise(dye, x, vectors)] + [()] * (len(out) - 1)
        if isinstance(out, tuple | list)
        else channelwise(dye, x, vectors)
    )


@rule("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def _(dye: Dye, out: Any, x: Any, shape: Any, weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    if dye.shrink and len(shape) == 1:
        return _shrinking(dye, out, x, [p for p in (weight, bias) if isinstance(p, Tensor)])
    normed = set(range(x.dim() - len(shape), x.dim()))
    passed = [p for layer in dye.of(x) if (p := hold(dye, layer, normed, "is normalised together")) is not None]
    for p in (weight, bias):
        for layer in dye.of(p):
            dye.freeze(layer, "scales channels that are normalised together")
    first = tuple(passed)
    return [first] + [()] * (len(out) - 1) if isinstance(out, tuple | list) else first


def _shrinking(dye: Dye, out: Any, x: Tensor, vectors: list[Tensor]) -> Any:
    """A norm over the last axis whose width may shrink; heads stay whole."""
    last = x.dim() - 1
    layers = tuple(la for layer in dye.of(x) if (la := _along_only(dye, layer, last)) is not None)
    along = [dye.along(layer, last) for layer in layers if last in axes(layer)]
    own = [layer for p in vectors for layer in dye.of(p)]
    for colours in along:
        dye.blur(colours, _STATISTIC)
    for colours in [*along[1:], *own]:
        dye.tie(along[0], colours) if along else dye.freeze(colours, "scales channels of a fixed number")
    return [layers] + [()] * (len(out) - 1) if isinstance(out, tuple | list) else layers


def _along_only(dye: Dye, layer: Tensor, axis: int) -> Tensor | None:
    return layer if axes(layer) == (axis,) else hold(dye, layer, {axis}, "is normalised together")


@rule("native_group_norm", "group_norm")
def _(dye: Dye, out: Any, x: Any, weight: Any, bias: Any, n: Any, c: Any, hw: Any, groups: Any, eps: Any) -> Any:
    known = dye.on(x, 1)
    vectors = [layer for p in (weight, bias) if p is not None for layer in dye.of(p)]
    if known and dye.shrink and groups == 1:
        for layer in known:
            dye.blur(dye.along(layer, 1), _STATISTIC)
        return [channelwise(dye, x, [p for p in (weight, bias) if p is not None]), (), ()]
    if not known or not dye.whole or groups == 1:
        for layer in [*known, *vectors]:
            dye.freeze(layer, f"is normalised in {groups} group(s) of {c // groups}")
        rest = tuple(layer for layer in dye.of(x) if 1 not in axes(layer))
        return [rest, (), ()]
    first = dye.along(known[0], 1)
    for v in [dye.along(k, 1) for k in known[1:]] + [v.reshape(-1) for v in vectors]:
        dye.tie(first, v)
    grouped = first.view(groups, -1)
    dye.tie(grouped, grouped[:, :1].expand_as(grouped))
    dye.heads.append((first, "norm group"))
    return [(spread(first, out[0].shape, 1), *[la for la in dye.of(x) if 1 not in axes(la)]), (), ()]


@rule("_weight_norm_interface")
def _(dye: Dye, out: Any, v: Any, g: Any, dim: Any = 0) -> Any:
    first = [dye.along(la, dim) for la in dye.on(v, dim)]
    if id(v) in dye.names and dye.on(g, dim):
        dye.scaled |= {(dye.names[id(v)], dim % v.dim())}
    for la in dye.on(g, dim):
        dye.tie(first[0], dye.along(la, dim)) if first else dye.freeze(la, "scales a weight of fixed size")
    kept = []
    for layer in dye.of(v):
        if axes(layer) == (dim % v.dim(),) or isinstance(
            v, nn.Parameter
        ):  # masked weights are zeros: norms do not change
            kept.append(layer)
        else:
            dye.freeze(layer, "is normalised together with the rest of its filter")
    return [tuple(kept), ()]
