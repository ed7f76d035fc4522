"""Pointwise operations: elements at equal positions leave together."""

from typing import Any

import torch
from torch import Tensor

from secateur.coupling.dyeing import Dye, Layers, rule
from secateur.coupling.layering import axes
from secateur.coupling.rules.holds import hold
from secateur.coupling.rules.pairing import pair

NAMES = """add sub rsub mul div true_divide remainder fmod pow exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square abs neg sign
sgn reciprocal floor ceil round trunc frac relu gelu silu mish sigmoid tanh hardtanh hardsigmoid hardswish relu6 leaky_relu elu
selu celu softplus log_sigmoid_forward log_sigmoid softshrink hardshrink tanhshrink threshold clamp clamp_min clamp_max sin cos
tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv atan2 lerp where masked_fill maximum minimum fmax fmin eq ne lt le gt ge logical_and
logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor isnan isinf isfinite nan_to_num addcmul addcdiv
logit special_expit sinc floor_divide __and__ __or__ native_dropout _prelu_kernel bernoulli rand_like randn_like prelu
_to_copy clone copy detach alias lift_fresh lift_fresh_copy contiguous to type_as _conj view_as_real_copy real imag polar complex
angle resolve_conj resolve_neg _neg_view float_power logaddexp logaddexp2 nextafter signbit isposinf isneginf deg2rad rad2deg i0
special_erfcx special_log_ndtr special_ndtri special_i0e special_i1 special_xlog1py igamma igammac positive
rrelu rrelu_with_noise rrelu_with_noise_functional dropout alpha_dropout feature_dropout feature_alpha_dropout
fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
_fake_quantize_learnable_per_tensor_affine xlogy heaviside hypot ldexp copysign digamma lgamma special_entr bitwise_left_shift bitwise_right_shift fill zero"""


def pointwise(dye: Dye, out: Tensor, *tensors: Tensor) -> Layers:
    """Tie all operands position by position; on axes where one has a fixed size, nothing may leave."""
    operands = [t for t in tensors if t.dim() > 0]
    if not any(dye.of(t) for t in operands):
        return ()
    result: list[Tensor] = []
    for axis, size in enumerate(out.shape):
        if size > 1 and not any(axis in axes(done) for done in result):
            result += _agree(dye, operands, out.shape, axis)
    return tuple(result)


def _agree(dye: Dye, operands: list[Tensor], shape: torch.Size, axis: int) -> list[Tensor]:
    """The layers that all operands share along ``axis``; none where nothing may leave."""
    sides: list[list[Tensor]] = []
    fixed = False
    for t in operands:
        d = axis - len(shape) + t.dim()
        if d < 0 or t.shape[d] == 1:
            continue  # broadcast along this axis: follows by itself
        layers = dye.on(t, d)
        if layers:
            sides.append([layer.expand(shape) for layer in layers])
        fixed |= not layers
    sides, constant = _without_constants(dye, sides)
    agreed = pair(dye, sides) if sides else []
    if not (fixed or constant):
        return agreed
    held = [hold(dye, layer, {axis}, f"meets a tensor of fixed size {shape[axis]}") for layer in agreed]
    return [layer for layer in held if layer is not None]


def _without_constants(dye: Dye, sides: list[list[Tensor]]) -> tuple[list[list[Tensor]], bool]:
    """Beside heads, a table that varies along one axis only (rotary angles) fixes the size inside a head."""
    present = [layer for side in sides for layer in side]
    if not any(len(axes(layer)) > 1 for layer in present if not dye.from_buffer(layer)):
        return sides, False
    tables = [layer for layer in present if dye.from_buffer(layer) and len(axes(layer)) == 1]
    for layer in tables:
        dye.freeze(layer, "is a constant beside heads")
    owned = [[layer for layer in side if not dye.from_buffer(layer)] for side in sides]
    return [side for side in owned if side], bool(tables)


@rule(
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_channel_affine_cachemask",
    "_fake_quantize_learnable_per_channel_affine",
)
def _(dye: Dye, out: Any, x: Any, scale: Any, zero: Any, axis: Any, *args: Any) -> Any:
    """One scale and one zero for every index of an axis."""
    vectors = []
    for vector in (scale, zero):
        view = [1] * x.dim()
        view[axis] = vector.shape[0]
        vectors.append(vector.detach().view(view))
        dye.put(vectors[-1], tuple(layer.reshape(view) for layer in dye.of(vector)))
    first = out[0] if isinstance(out, tuple | list) else out
    layers = pointwise(dye, first, x, *vectors)
    return [layers] * len(out) if isinstance(out, tuple | list) else layers


@rule(*NAMES.split())
def _(dye: Dye, out: Any, *args: Any, **kwargs: Any) -> Any:
    first = out[0] if isinstance(out, tuple | list) else out
    layers = pointwise(dye, first, *[a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)])
    if dye.operation == "copy_" and not dye.of(args[0]):
        for layer in dye.of(args[1]):
            dye.freeze(layer, "is copied into a buffer of fixed size")
        return ()
    return [layers] * len(out) if isinstance(out, tuple | list) else layers
