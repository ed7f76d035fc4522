"""Fused attention: heads leave whole from queries, keys, values and the output at once."""

from typing import Any

from torch import Tensor

from secateur.coupling.dyeing import Dye, Layers, rule
from secateur.coupling.layering import axes, spread
from secateur.coupling.rules.contractions import contract


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_cudnn_attention",
)
def _(dye: Dye, out: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
    first = out[0] if isinstance(out, tuple | list) else out
    mask = kwargs.get("attn_mask", next((a for a in args if isinstance(a, Tensor)), None))
    layers = attention(dye, first, q, k, v, mask, explicit_scale=kwargs.get("scale") is not None)
    return [layers] + [()] * (len(out) - 1) if isinstance(out, tuple | list) else layers


def attention(
    dye: Dye, out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, explicit_scale: bool
) -> Layers:
    """``[batch, heads, tokens, width]``; keys and values may have fewer heads (grouped queries)."""
    sides = {"q": dye.of(q)}
    for name, t in (("k", k), ("v", v)):
        sides[name] = tuple(repeat_heads(layer, q.shape[1] // t.shape[1]) for layer in dye.of(t))
    heads = {name: [_heads(dye, la) for la in layers if _has_heads(dye, la)] for name, layers in sides.items()}
    everyone = [colours for found in heads.values() for colours in found]
    for colours in everyone[1:]:
        dye.tie(everyone[0], colours)
    if everyone and not all(heads.values()):
        dye.freeze(everyone[0], "attends with a fixed number of heads")
    if mask is not None and mask.dim() == 4 and not _same_for_all_heads(mask):
        contract(dye, everyone[:1], [dye.along(la, 1) for la in dye.on(mask, 1)])
    if dye.whole and everyone:
        for layer in (la for la in sides["v"] if 3 in axes(la) and 1 not in axes(la)):
            dye.freeze(layer, "is inside heads, which leave whole")  # multi-query: all heads share these
        sides["v"] = tuple(la for la in sides["v"] if 1 in axes(la))
    _couple_widths(dye, sides, explicit_scale=explicit_scale)
    result = [la.narrow(2, 0, 1).expand(out.shape) for la in sides["v"] if 3 in axes(la) and 2 not in axes(la)]
    if everyone and not any(1 in axes(r) for r in result):
        result.append(spread(everyone[0], out.shape, 1))
    return tuple(result)


def _same_for_all_heads(mask: Tensor) -> bool:
    """Whether the code made one mask and expanded it: by an attribute, which follows, or else the trial run fails."""
    return mask.shape[1] == 1 or bool((mask == mask[:, :1]).all())


def _has_heads(dye: Dye, layer: Tensor) -> bool:
    """Whether whole heads may leave; if only their insides may, ties the same index of every head."""
    if 1 not in axes(layer):
        return False
    if len(axes(layer)) > 1 and not dye.whole:
        dye.tie(layer, layer.narrow(1, 0, 1).expand_as(layer))
        return False
    return True


def _heads(dye: Dye, layer: Tensor) -> Tensor:
    colours = dye.along(layer, 1)
    if len(axes(layer)) > 1:
        dye.heads.append((colours, "head"))
    return colours


def _couple_widths(dye: Dye, sides: dict[str, Layers], *, explicit_scale: bool) -> None:
    """Channels inside heads: queries and keys share theirs, and their number sets the scale unless that is given."""
    inside = [la for name in "qk" for la in sides[name] if 3 in axes(la) and not (dye.whole and 1 in axes(la))]
    both = all(any(3 in axes(la) for la in sides[name]) for name in "qk")
    for layer in inside:
        if explicit_scale and both:
            dye.tie(dye.along(inside[0], 3), dye.along(layer, 3))
        else:
            dye.freeze(layer, "sets the scale 1/sqrt(head width)")


def repeat_heads(layer: Tensor, times: int) -> Tensor:
    """Repeat key or value heads so that each stands beside the queries it serves."""
    if times == 1:
        return layer
    if 1 in axes(layer):
        return layer.repeat_interleave(times, 1)
    shape = list(layer.shape)
    shape[1] *= times
    return layer.narrow(1, 0, 1).expand(shape)
