"""What every weight is multiplied with: the samples behind a layer's Hessian, for each type of layer.

A weight is seen as ``[groups, rows, features]``: rows of one group are multiplied with the same features, position by position.
Features stand with kernel positions outside and input channels inside, so that neighbours in an N:M group are neighbours here.

    linear        one group; features = inputs, samples = tokens
    convolution   a group each; features = taps x inputs, samples = patches (of a transposed one: of its input with zeros between)
    attention     the in-projection has three groups: query, key, value; the out-projection takes in the heads, joined
    recurrent     weight_ih takes in the inputs (or the states below), weight_hh the state one step before (`secateur.layerwise.unrolling`)

Teach yours: ``@secateur.layerwise.inflow.feeds.register`` gives, for a call's ``args`` and ``kwargs``, attribute -> ``[groups, features, samples]``.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from secateur.errors import UnknownLayer
from secateur.facts import LayerFacts
from secateur.layerwise.unrolling import unrolled

__all__ = ["as_rows", "feeds", "from_rows", "joined_heads", "listening_to", "takes_part"]

Feeds = Mapping[str, Tensor]


def as_rows(weight: Tensor, facts: LayerFacts, groups: int) -> Tensor:
    """``[groups, rows, features]`` of a weight.

    >>> as_rows(torch.zeros(8, 3, 5, 5), LayerFacts(kind="conv", groups=2), 2).shape
    torch.Size([2, 4, 75])
    """
    canonical = facts.canonical(weight)  # [out, in, taps]
    return canonical.transpose(1, 2).reshape(groups, len(canonical) // groups, -1)


def from_rows(rows: Tensor, facts: LayerFacts, like: Tensor) -> Tensor:
    """Undo `as_rows`."""
    canonical = facts.canonical(like.detach())
    _, inputs, taps = canonical.shape
    return facts.original(rows.reshape(-1, taps, inputs).transpose(1, 2).reshape(canonical.shape), like)


def takes_part(module: nn.Module) -> bool:
    """Whether there is a rule for what this layer's weights are multiplied with."""
    return feeds.dispatch(type(module)) is not feeds.dispatch(object) or _is_conv1d(module)


@singledispatch
def feeds(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Feeds:
    """What each weight of ``module`` is multiplied with in a call, by attribute: ``[groups, features, samples]``.

    Raises:
        UnknownLayer: there is no rule for this type.
    """
    if _is_conv1d(module):  # of transformers: a linear layer with its weight transposed
        return {"weight": _tokens(_first(args, kwargs))}
    raise UnknownLayer(
        f"there is no rule for what the weights of {type(module).__name__} are multiplied with; leave it out with ignore=, or add one: "
        "@secateur.layerwise.inflow.feeds.register"
    )


@feeds.register
def _(_module: nn.Linear, args: Any, kwargs: Any) -> Feeds:
    return {"weight": _tokens(_first(args, kwargs))}


@feeds.register
def _(_module: nn.Bilinear, args: Any, kwargs: Any) -> Feeds:
    one, other = (_tokens(x)[0] for x in (*args, *kwargs.values()))
    return {"weight": (other.unsqueeze(1) * one.unsqueeze(0)).flatten(0, 1).unsqueeze(0)}  # in2 outside, in1 inside


@feeds.register(nn.modules.conv._ConvNd)
def _(module: nn.modules.conv._ConvNd, args: Any, kwargs: Any) -> Feeds:
    x = _first(args, kwargs)
    x = x if x.dim() == module.weight.dim() else x.unsqueeze(0)
    stride, dims = module.stride, len(module.kernel_size)
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if module.transposed:
        x, stride = _with_zeros_between(x, module, spans), (1,) * dims
    else:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = nf.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis, (span, step, gap) in enumerate(zip(spans, stride, module.dilation, strict=True), start=2):
        x = x.unfold(axis, span + 1, step)[..., ::gap]
    if module.transposed:
        x = x.flip(tuple(range(2 + dims, 2 + 2 * dims)))
    x = torch.unflatten(x, 1, (module.groups, -1))  # [batch, groups, in, *places, *taps]
    order = (1, *range(3 + dims, 3 + 2 * dims), 2, 0, *range(3, 3 + dims))
    return {"weight": x.permute(order).flatten(2 + dims).flatten(1, 1 + dims)}


def _with_zeros_between(x: Tensor, module: nn.modules.conv._ConvNd, spans: list[int]) -> Tensor:
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], module.stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in module.stride))] = x
    pads: list[int] = []
    before: Any = module.padding
    for span, padding, more in zip(spans, before, module.output_padding, strict=True):
        pads = [span - padding, span - padding + more, *pads]
    return nf.pad(wide, pads)


@feeds.register
def _(module: nn.MultiheadAttention, args: Any, kwargs: Any) -> Feeds:
    call = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    query, key, value = (_tokens(call[name]) for name in ("query", "key", "value"))
    if not module._qkv_same_embed_dim:
        return {"q_proj_weight": query, "k_proj_weight": key, "v_proj_weight": value}
    if not query.shape == key.shape == value.shape:
        if key.shape != value.shape:
            raise UnknownLayer("attention whose keys and values differ in length has no joint in-projection")
        short, long = sorted(
            (query.shape[2], key.shape[2])
        )  # samples of the shorter one count as many times: means are taken
        pad = long - short
        query, key, value = (nf.pad(x, (0, pad if x.shape[2] == short else 0)) for x in (query, key, value))
    return {"in_proj_weight": torch.cat((query, key, value))}


@feeds.register(nn.RNNBase)
def _(module: nn.RNNBase, args: Any, kwargs: Any) -> Feeds:
    return unrolled(module, args, kwargs)


@contextmanager
def listening_to(modules: Mapping[nn.Module, str], call: Any, around: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Tell ``call(path, feeds)`` what the weights of every module are multiplied with while the model runs.

    The out-projection of `torch.nn.MultiheadAttention` is not called as a module, so the joined heads are computed for it again: by its
    parent, which is one of ``modules`` or ``around`` them.
    """

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        call(modules[module], feeds(module, args, kwargs))

    def note_attention(module: nn.MultiheadAttention, args: Any, kwargs: Any, _: Any) -> None:
        if module.out_proj in modules:
            call(modules[module.out_proj], {"weight": _tokens(joined_heads(module, args, kwargs))})

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    parents = {m for m in (*modules, *around) if isinstance(m, nn.MultiheadAttention)}
    handles += [m.register_forward_hook(note_attention, with_kwargs=True) for m in parents]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def joined_heads(module: nn.MultiheadAttention, args: Any, kwargs: Any) -> Tensor:
    """What the out-projection takes in: the same call with an identity in its place."""
    out, width = module.out_proj, module.embed_dim
    weight, bias = out.weight, out.bias
    identity = torch.eye(width, dtype=weight.dtype, device=weight.device)
    try:
        out.weight = nn.Parameter(identity, requires_grad=False)
        out.bias = None if bias is None else nn.Parameter(torch.zeros_like(bias), requires_grad=False)
        heads: Tensor = module.forward(*args, **kwargs)[0]
    finally:
        out.weight, out.bias = weight, bias
    return heads


def _first(args: Any, kwargs: Any) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _tokens(x: Tensor) -> Tensor:
    """``[..., features]`` as ``[1, features, samples]``."""
    return x.reshape(-1, x.shape[-1]).t().unsqueeze(0)


def _is_conv1d(module: nn.Module) -> bool:
    return f"{type(module).__module__}.{type(module).__qualname__}" == "transformers.pytorch_utils.Conv1D"
