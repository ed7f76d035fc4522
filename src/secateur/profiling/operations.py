"""How many multiply-accumulates one ATen operation takes, and which of its operands may be a weight.

Most rules are torch's own (`torch.utils.flop_counter`, FLOPs / 2), read when the operation runs, so a formula that somebody
registers there with ``register_flop_formula`` counts here too. This page adds those that torch lacks: recurrent layers, fused
CPU attention, matrix-vector products, bilinear, grouped (mixture of experts), quantised and deformable ones.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import flop_counter

__all__ = ["Term", "has_rule", "is_harmless", "may_multiply", "terms_of"]


class Term(NamedTuple):
    """``macs`` multiply-accumulates, every one of which takes a factor from each of ``operands``."""

    macs: int
    operands: tuple[Tensor, ...] = ()


Rule: TypeAlias = Callable[[Sequence[Any], Mapping[str, Any], Any], list[Term]]


def terms_of(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> list[Term] | None:
    """What ``operation`` multiplies, or ``None`` if there is no rule for it."""
    packet = _packet(operation)
    rule = _RULES.get(str(packet))
    if rule is not None:
        return rule(args, kwargs, out)
    formula = flop_counter.flop_registry.get(packet)
    if formula is None:
        return None
    tensors = [a for a in args if isinstance(a, Tensor)]
    operands = tuple(tensors[1:3] if str(packet) in _ADDS_FIRST else tensors[:2])
    return [Term(int(formula(*args, **kwargs, out_val=out)) // 2, operands)]


def has_rule(operation: Any) -> bool:
    """Whether `terms_of` knows ``operation``."""
    packet = _packet(operation)
    return str(packet) in _RULES or packet in flop_counter.flop_registry


def is_harmless(operation: Any) -> bool:
    """Whether ``operation`` only moves, maps or adds elements, so that it has no multiply-accumulates by convention.

    >>> is_harmless(torch.ops.aten.relu.default), is_harmless(torch.ops.aten.mm.default)
    (True, False)
    """
    if torch.Tag.pointwise in getattr(operation, "tags", ()) or getattr(operation, "is_view", False):
        return True
    namespace, _, name = str(_packet(operation)).partition(".")
    name = name.strip("_")
    return namespace == "prim" or (namespace == "aten" and (name in _HARMLESS or name.startswith(_RESAMPLING)))


def may_multiply(operation: Any) -> bool:
    """Whether ``operation`` says by its name that it multiplies matrices, or is made of operations nobody can see.

    >>> may_multiply(torch.ops.aten._native_multi_head_attention), may_multiply(torch.ops.aten.upsample_bilinear2d)
    (True, False)
    """
    words = str(_packet(operation)).partition(".")[2].split("_")
    return isinstance(operation, torch._ops.HigherOrderOperator) or any(_TELLING.fullmatch(word) for word in words)


def _packet(operation: Any) -> Any:
    return getattr(operation, "_overloadpacket", operation)  # a higher-order operator has no overloads


def _matrix_vector(args: Sequence[Any], _: Mapping[str, Any], __: Any) -> list[Term]:
    matrix, vector = args[-2:] if len(args) == 2 else args[1:3]
    return [Term(matrix.numel(), (matrix, vector))]


def _dot(args: Sequence[Any], _: Mapping[str, Any], __: Any) -> list[Term]:
    return [Term(args[0].numel(), tuple(args[:2]))]


def _sum_of_products(args: Sequence[Any], _: Mapping[str, Any], __: Any) -> list[Term]:
    a, b = args[1:3]  # addbmm: [batch, m, k] @ [batch, k, n], added up over the batch
    return [Term(a.numel() * b.shape[-1], (a, b))]


def _attention(args: Sequence[Any], _: Mapping[str, Any], __: Any) -> list[Term]:
    query, key, value = args[:3]  # [..., queries, d], [..., keys, d], [..., keys, d_v]; key heads may be fewer
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return [Term(scores * (query.shape[-1] + value.shape[-1]))]


def _trilinear(args: Sequence[Any], _: Mapping[str, Any], __: Any) -> list[Term]:
    first, weight, second = args[:3]  # out[b, o] = sum_ij first[b, i] weight[o, i, j] second[b, j], inner sum first
    batch, outputs = first.shape[0], weight.shape[0]
    inner = batch * weight.numel()
    return [Term(inner, (weight,)), Term(batch * outputs * second.shape[-1])]


def _cpu_recurrent(args: Sequence[Any], _: Mapping[str, Any], __: Any) -> list[Term]:
    steps = args[0].numel() // max(1, args[0].shape[-1])  # every step of every sequence meets both matrices once
    return [Term(steps * weight.numel(), (weight,)) for weight in args[1:3]]


def _gpu_recurrent(args: Sequence[Any], _: Mapping[str, Any], __: Any) -> list[Term]:
    steps = args[0].numel() // max(1, args[0].shape[-1])
    return [Term(steps * weight.numel(), (weight,)) for weight in args[1] if weight.dim() == 2]


def _grouped(args: Sequence[Any], _: Mapping[str, Any], __: Any) -> list[Term]:
    a, b = args[:2]  # a: [g, m, k] or all groups in one [m, k]; b: [g, k, n] or all groups in one [k, n]
    split = a.shape[0] if a.dim() == 3 and b.dim() == 2 else 1  # then each group sees its own part of n
    return [Term(a.numel() * b.shape[-1] // split, (a, b))]


def _linear(args: Sequence[Any], _: Mapping[str, Any], out: Any) -> list[Term]:
    return [Term(out.numel() * args[0].shape[-1], tuple(args[:2]))]


def _quantised_linear(args: Sequence[Any], _: Mapping[str, Any], out: Any) -> list[Term]:
    weight = args[1].unpack()[0]
    return [Term(out.numel() * args[0].shape[-1], (weight,))]


def _conv(args: Sequence[Any], _: Mapping[str, Any], out: Any) -> list[Term]:
    weight = args[1] if isinstance(args[1], Tensor) else args[1].unpack()[0]  # quantised weights come packed
    places = out.numel() // max(1, weight.shape[0])  # every place of the output meets the whole weight once
    return [Term(places * weight.numel(), (weight,))]


def _conv_time_first(args: Sequence[Any], _: Mapping[str, Any], out: Any) -> list[Term]:
    weight = args[1]  # [taps, in, out]
    return [Term(out.numel() // max(1, weight.shape[-1]) * weight.numel(), (weight,))]


def _rules() -> Iterator[tuple[str, Rule]]:
    yield from dict.fromkeys(("aten.mv", "aten.addmv", "aten.addmv_"), _matrix_vector).items()
    yield from dict.fromkeys(("aten.dot", "aten.vdot"), _dot).items()
    yield from {"aten.addbmm": _sum_of_products, "aten._trilinear": _trilinear}.items()
    attention = "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"
    attention += " _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
    attention += " _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps"
    yield from {f"aten.{name}": _attention for name in attention.split()}.items()
    yield from {"aten.mkldnn_rnn_layer": _cpu_recurrent}.items()
    yield from dict.fromkeys(("aten._cudnn_rnn", "aten.miopen_rnn"), _gpu_recurrent).items()
    yield from dict.fromkeys(("aten._grouped_mm", "aten._scaled_grouped_mm"), _grouped).items()
    linear = "aten.linear aten.mkldnn_linear aten._sparse_semi_structured_linear mkldnn._linear_pointwise"
    yield from dict.fromkeys(linear.split(), _linear).items()
    for kind in ("linear", "linear_relu", "linear_dynamic", "linear_relu_dynamic", "linear_dynamic_fp16"):
        yield f"quantized.{kind}", _quantised_linear
    for kind in ("conv1d", "conv2d", "conv3d"):
        yield from dict.fromkeys((f"quantized.{kind}", f"quantized.{kind}_relu"), _conv).items()
    convs = "mkldnn_convolution _conv_depthwise2d conv_depthwise3d slow_conv3d_forward _nnpack_spatial_convolution"
    yield from dict.fromkeys((f"aten.{name}" for name in convs.split()), _conv).items()
    yield from {"torchvision.deform_conv2d": _conv, "aten.conv_tbc": _conv_time_first}.items()


_RULES: dict[str, Rule] = dict(_rules())
_ADDS_FIRST = {"aten.addmm", "aten.addmm_", "aten.baddbmm", "aten._addmm_activation"}
_TELLING = re.compile(r"attention|\w*mm|matmul|conv\w*|linear|rnn|lstm|gru|einsum|trilinear|flex")
_RESAMPLING = ("upsample", "grid_sampler", "avg_pool", "adaptive_avg_pool", "max_pool")
_HARMLESS = set(  # moving, filling, reducing, normalising, looking up; names without leading underscores
    """
    alias as_strided cat clone constant_pad_nd contiguous copy detach diagonal_copy embedding embedding_bag
    embedding_bag_forward_only embedding_renorm expand_copy fake_quantize_per_channel_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask_tensor_qparams fill flip gather index index_add index_copy
    index_put index_select lift_fresh local_scalar_dense masked_fill masked_scatter masked_select nonzero pin_memory
    pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d replication_pad2d repeat repeat_interleave reshape_alias
    resize roll rot90 scatter scatter_add select_scatter slice_scatter sort split_with_sizes_copy stack take to_copy to_dense
    tril triu unfold_copy unique2 unsafe_split unsafe_split_with_sizes unsafe_view view_copy view_as_complex view_as_real
    all allclose amax amin aminmax any argmax argmin count_nonzero cummax cumsum equal linalg_vector_norm logsumexp log_softmax
    max mean median min norm prod softmax std std_mean sum topk var var_mean
    batch_norm_impl_index batch_norm_no_update batch_norm_with_update cudnn_batch_norm fused_rms_norm native_batch_norm
    native_batch_norm_legit native_batch_norm_legit_no_training native_group_norm native_layer_norm rms_norm weight_norm_interface
    native_channel_shuffle
    """.split()  # noqa: SIM905 - a list of a hundred quoted words reads worse
)
