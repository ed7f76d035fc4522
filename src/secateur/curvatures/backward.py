"""The backward recursion for second derivatives of optimal brain damage (LeCun, Denker & Solla 1990, eqs. 8 to 13).

For a chain of layers a = W x, x' = f(a), from the last to the first, h = d2E/da2 without its cross terms:

    weights    d2E/dw_ij^2 = sum over the places where w_ij is used of  h_i x_j^2
    linear     h_x = (W o W)^T h_a,           elementwise    h_a = f'(a)^2 h_x + f''(a) dE/dx

The Levenberg-Marquardt form leaves f'' out, and every h stays >= 0. A convolution is linear with shared weights, so the same squares go
through its own derivatives. Cross terms between the units of a layer are left out below the top one: it is not the exact diagonal.
Batch norm is elementwise in eval mode. A softmax at the very end belongs to the loss, whose diagonal is exact.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.activations import fresh
from secateur.curvatures.calls import chain_of_calls
from secateur.errors import UnknownLayer
from secateur.examples import leaving_no_trace
from secateur.task import Task

__all__ = ["recursive_diagonal"]

_STRAIGHT = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardsigmoid, nn.Hardtanh, nn.Softshrink, nn.Hardshrink),
    *(nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout, _BatchNorm),
)  # in pieces: f'' is zero
_CURVED = (
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish),
    *(nn.LogSigmoid, nn.Tanhshrink, nn.Softsign),
)
_MOVING = (
    *(nn.Flatten, nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_Linear = (nn.Linear, nn.modules.conv._ConvNd)


def recursive_diagonal(model: nn.Module, task: Task, batch: Any, *, levenberg: bool) -> Mapping[str, Tensor]:
    """``d2E/dw^2`` of the task's loss on a batch, for the weights and biases of every linear layer and convolution, by name.

    Raises:
        UnknownLayer: the model is no chain of layers with a rule.
        NeedsTask: no loss.
    """
    loss = task.needs_loss("the recursion")
    calls, answer = chain_of_calls(model, batch, task)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    with leaving_no_trace(model), torch.enable_grad():
        last: Callable[[Tensor], Tensor] = _same_again
        if isinstance(calls[-1].module, nn.Softmax | nn.LogSoftmax):
            last, answer = calls[-1].module, calls.pop().x
        first, second = _at_output(
            lambda out: loss(_Answer(last(out)), fresh(batch)),  # type: ignore[arg-type]
            answer,
        )
        for call in reversed(calls):
            if isinstance(call.module, _Linear):
                for part, value in _of_weights(call.module, call.x, second).items():
                    name = names[call.module.get_parameter(part)]
                    found[name] = found[name] + value if name in found else value  # a layer may be used again
            first, second = _before(call.module, call.x, first, second, levenberg=levenberg)
    return found


class _Answer:
    """Stands in for the model in its loss: it has answered already."""

    def __init__(self, out: Tensor) -> None:
        self.out = out

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return self.out


def _same_again(out: Tensor) -> Tensor:
    return out


def _at_output(loss: Callable[[Tensor], Tensor], out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and diagonal second derivatives by the network's output, ``[batch, ...]``; samples do not mix."""
    leaf = out.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    second = torch.zeros_like(out)
    flat, rows = second.view(len(out), -1), gradient.reshape(len(out), -1)
    for unit in range(flat.shape[1]):
        if rows.requires_grad:
            (column,) = torch.autograd.grad(rows[:, unit].sum(), leaf, retain_graph=True)
            flat[:, unit] = column.reshape(len(out), -1)[:, unit]
    return gradient.detach(), second


def _pulled(call: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_(True)
    (found,) = torch.autograd.grad(call(leaf), leaf, cotangent)
    return found


def _of_weights(module: nn.Module, x: Tensor, second: Tensor) -> dict[str, Tensor]:
    weight = module.get_parameter("weight")

    def squared(w: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"weight": w}, (x.square(),))  # type: ignore[no-any-return]

    found = {"weight": _pulled(squared, weight, second)}
    if module.bias is not None:
        dim = 1 if isinstance(module, nn.modules.conv._ConvNd) else second.dim() - 1
        found["bias"] = second.movedim(dim, 0).flatten(1).sum(1)
    return found


def _before(module: nn.Module, x: Tensor, first: Tensor, second: Tensor, *, levenberg: bool) -> tuple[Tensor, Tensor]:
    """Gradient and second derivatives one layer down."""
    if isinstance(module, _Linear):
        squares = {"weight": module.get_parameter("weight").detach().square()}
        return (
            _pulled(module, x, first),
            _pulled(lambda leaf: torch.func.functional_call(module, squares, (leaf,)), x, second),
        )
    if isinstance(module, _MOVING):
        return _pulled(module, x, first), _pulled(module, x, second)
    if isinstance(module, _AVERAGES + _ADAPTIVE):
        return _pulled(module, x, first), _pulled(module, x, second * _shares(module, x))
    mixes = isinstance(module, _BatchNorm) and module.running_mean is None  # the samples of a batch
    if isinstance(module, _STRAIGHT + _CURVED) and not mixes:
        leaf = x.detach().requires_grad_(True)
        bends = isinstance(module, _CURVED) and not levenberg
        (slope,) = torch.autograd.grad(module(leaf.clone()).sum(), leaf, create_graph=bends)
        if not bends:
            return slope * first, slope.square() * second
        (bend,) = torch.autograd.grad(slope.sum(), leaf)
        slope = slope.detach()
        return slope * first, slope.square() * second + bend * first
    raise UnknownLayer(
        f"the recursion has no rule for {type(module).__name__}; use diagonal='hutchinson', which works for any network"
    )


def _shares(pool: Any, x: Tensor) -> Tensor:
    """What each window's entries are multiplied by, ``[1, channels, *windows]``: the padding, edges and a divisor of its own all have a say."""
    ones = torch.ones_like(x[:1])
    means: Tensor = pool(ones)
    if isinstance(pool, _ADAPTIVE):
        return means / _adaptive_entries(ones, means)
    kernel, stride, padding = pool.kernel_size, pool.stride, pool.padding
    sums = avg_pool3d if isinstance(pool, nn.AvgPool3d) else avg_pool2d
    if isinstance(pool, nn.AvgPool1d):  # a picture of one row
        kernel, stride, padding, ones = (1, *kernel), (1, *stride), (0, *padding), ones.unsqueeze(-2)
    return means / sums(ones, kernel, stride, padding, pool.ceil_mode, divisor_override=1).view_as(means)


def _adaptive_entries(ones: Tensor, means: Tensor) -> Tensor:
    """How many places each window of adaptive pooling has: from ``floor(k n / m)`` to ``ceil((k + 1) n / m)`` along every axis."""
    entries = torch.ones_like(means)
    for axis in range(2, means.dim()):
        n, m = ones.shape[axis], means.shape[axis]
        lengths = [-(-(k + 1) * n // m) - k * n // m for k in range(m)]
        entries *= entries.new_tensor(lengths).view(-1, *[1] * (means.dim() - axis - 1))
    return entries
