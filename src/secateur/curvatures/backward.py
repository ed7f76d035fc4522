"""The backward recursion for second derivatives of optimal brain damage (LeCun, Denker & Solla 1990, eqs. 8 to 13).

For a chain of layers a = W x, x' = f(a), from the last to the first, h = d2E/da2 without its cross terms:

    weights    d2E/dw_ij^2 = sum over the places where w_ij is used of  h_i x_j^2
    linear     h_x = (W o W)^T h_a,           elementwise    h_a = f'(a)^2 h_x + f''(a) dE/dx

The Levenberg-Marquardt form leaves f'' out, and every h stays >= 0. A convolution is linear with shared weights, so the same squares go
through its own derivatives. Cross terms between the units of a layer are left out below the top one: it is not the exact diagonal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from secateur.activations import fresh, run_hooked
from secateur.errors import UnknownLayer
from secateur.examples import leaving_no_trace
from secateur.layerwise.chains import chain_of, version_of
from secateur.task import Task

__all__ = ["recursive_diagonal"]

_ELEMENTWISE = (
    nn.ReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.Identity,
    nn.Dropout,
)
_MOVING = (nn.Flatten, nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d)
_Linear = (nn.Linear, nn.modules.conv._ConvNd)


def recursive_diagonal(model: nn.Module, task: Task, batch: Any, *, levenberg: bool) -> Mapping[str, Tensor]:
    """``d2E/dw^2`` of the task's loss on a batch, for the weights and biases of every linear layer and convolution, by name.

    Raises:
        UnknownLayer: the model is no chain of layers with a rule.
        NeedsTask: no loss.
    """
    loss = task.needs_loss("the recursion")
    calls, answer = _chain(model, batch, task)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    with leaving_no_trace(model), torch.enable_grad():
        first, second = _at_output(
            lambda out: loss(_Answer(out), fresh(batch)),  # type: ignore[arg-type]
            answer,
        )
        for call in reversed(calls):
            if isinstance(call.module, _Linear):
                for part, value in _of_weights(call.module, call.x, second).items():
                    name = names[call.module.get_parameter(part)]
                    found[name] = found[name] + value if name in found else value  # a layer may be used again
            first, second = _before(call.module, call.x, first, second, levenberg=levenberg)
    return found


@dataclass(eq=False)
class _Call:
    """A layer at work: what it took in, as a copy and as the tensor that it was, and what it gave."""

    module: nn.Module
    x: Tensor
    source: Tensor
    since: int  # how often the source had been changed in place
    out: Tensor | None = None
    version: int = 0


def _chain(model: nn.Module, batch: Any, task: Task) -> tuple[list[_Call], Tensor]:
    """The calls that lead from what the network is given to what it gives, one by one, and that.

    Raises:
        UnknownLayer: something else happens on the way.
    """
    calls, given, answers = _listen(model, batch, task)
    answer = answers[0] if len(answers) == 1 and isinstance(answers[0], Tensor) else None
    at = len(calls)
    chain: list[_Call] = []
    while answer is not None:
        before = [k for k in range(at) if _gave(calls[k], chain[0] if chain else answer)]
        if not before:
            break
        at = before[-1]
        chain.insert(0, calls[at])
    if answer is not None and chain and any(_same(chain[0].x, x) for x in given):
        return chain, answer
    layers = [model.get_submodule(path) for path in chain_of(model, batch, task)]
    if not layers:
        raise UnknownLayer(f"{type(model).__name__} is no chain of layers; diagonal='hutchinson' works for any network")
    names = ", ".join(type(module).__name__ for module in layers[:4])
    raise UnknownLayer(
        f"{type(model).__name__} computes more than its chain of {len(layers)} layers ({names}, ...), which is all that the recursion goes "
        "through; diagonal='hutchinson' works for any network"
    )


def _gave(call: _Call, what: _Call | Tensor) -> bool:
    """Whether a call gave what another one took in, the very tensor, or what the network gives, at least in numbers."""
    if call.out is None:
        return False
    if isinstance(what, Tensor):
        return _same(call.out, what)
    return call.out is what.source and call.version == what.since


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _listen(model: nn.Module, batch: Any, task: Task) -> tuple[list[_Call], list[Tensor], list[Any]]:
    """Every call of a layer, in order; what the network is given; what it gives, each time that it is run."""
    calls, given, answers = list[_Call](), list[Tensor](), list[Any]()

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if module is model:
            given.extend(leaf.clone() for leaf in leaves)
        if leaves and not list(module.children()):
            calls.append(_Call(module, leaves[0].clone(), leaves[0], version_of(leaves[0])))

    def after(module: nn.Module, _args: Any, out: Any) -> None:
        if module is model:
            answers.append(out.clone() if isinstance(out, Tensor) else out)
        if calls and calls[-1].module is module and isinstance(out, Tensor):
            calls[-1].out, calls[-1].version = out, version_of(out)

    layers = {module for module in model.modules() if not list(module.children())} | {model}
    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    run_hooked(model, batch, task, hooks)
    return calls, given, answers


class _Answer:
    """Stands in for the model in its loss: it has answered already."""

    def __init__(self, out: Tensor) -> None:
        self.out = out

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return self.out


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
    if isinstance(module, nn.AvgPool2d):
        return _pulled(module, x, first), _pulled(module, x, second * _shares(module, x))
    if isinstance(module, _ELEMENTWISE):
        leaf = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(module(leaf.clone()).sum(), leaf, create_graph=True)
        bend = torch.zeros_like(x)
        if slope.requires_grad and not levenberg:
            (bend,) = torch.autograd.grad(slope.sum(), leaf, allow_unused=True, materialize_grads=True)
        slope = slope.detach()
        return slope * first, slope.square() * second + bend * first
    fold = "fold it into the layer before it, or " if isinstance(module, _BatchNorm) else ""
    raise UnknownLayer(
        f"the recursion has no rule for {type(module).__name__}; {fold}use diagonal='hutchinson', which works for any network"
    )


def _shares(pool: nn.AvgPool2d, x: Tensor) -> Tensor:
    """What each window's entries are multiplied by, ``[1, channels, *windows]``: the padding, edges and a divisor of its own all have a say."""
    ones = torch.ones_like(x[:1])
    entries = avg_pool2d(ones, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, divisor_override=1)
    return pool(ones) / entries  # type: ignore[no-any-return]
