"""Attention whose in-projections can be seen: `torch.nn.MultiheadAttention` makes them inside of one function, out of reach of hooks.

While a call lasts, queries, keys and values are projected before it, and identities stand where the projections' weights were.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nf
from torch.utils.hooks import RemovableHandle

__all__ = ["projected_apart"]

_NAMES = ("query", "key", "value")


def projected_apart(
    attention: nn.MultiheadAttention, path: str, see: Callable[[str, Tensor], Tensor]
) -> list[RemovableHandle]:
    """Let ``see`` look at what each in-projection gives, and put another tensor in its place; the handles take that off again.

    Args:
        attention: never on its fused path (`secateur.examples.plain_attention`).
        path: of it; projections are called ``path.q_proj_weight`` and so on, also where they are one tensor.
        see: called with the name and the projection, ``[..., embed_dim]``.
    """
    before: list[dict[str, nn.Parameter | None]] = []

    def project(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = dict(zip(_NAMES, args, strict=False)) | kwargs
        weights, biases = _projections(attention)
        for which, weight, bias in zip(_NAMES, weights, biases, strict=True):
            call[which] = see(f"{path}.{which[0]}_proj_weight".lstrip("."), nf.linear(call[which], weight, bias))
        before.append(_replaced(attention))
        return tuple(call.pop(which) for which in _NAMES) + args[3:], {k: v for k, v in call.items() if k in kwargs}

    def restore(*_: Any) -> None:
        for attribute, parameter in before.pop().items() if before else ():
            setattr(attention, attribute, parameter)

    return [
        attention.register_forward_pre_hook(project, with_kwargs=True),
        attention.register_forward_hook(restore, always_call=True),
    ]


def _projections(attention: nn.MultiheadAttention) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    bias = attention.in_proj_bias
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    if attention._qkv_same_embed_dim:
        return attention.in_proj_weight.chunk(3), biases
    return (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight), biases


def _replaced(attention: nn.MultiheadAttention) -> dict[str, nn.Parameter | None]:
    """Identities and no bias from here on; what was there."""
    own = ("in_proj_weight",) if attention._qkv_same_embed_dim else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    found = {name: getattr(attention, name) for name in (*own, "in_proj_bias")}
    like = found[own[0]]
    eye = torch.eye(attention.embed_dim, dtype=like.dtype, device=like.device)
    for name in own:
        setattr(
            attention, name, nn.Parameter(eye.repeat(3, 1) if name == "in_proj_weight" else eye, requires_grad=False)
        )
    if attention.in_proj_bias is not None:
        attention.in_proj_bias = nn.Parameter(torch.zeros_like(attention.in_proj_bias), requires_grad=False)
    return found
