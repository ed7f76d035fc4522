"""The backward recursion for second derivatives of optimal brain damage (LeCun, Denker & Solla 1990, eqs. 8 to 13).

For a chain of layers a = W x, x' = f(a), from the last to the first, h = d2E/da2 without its cross terms:

    weights    d2E/dw_ij^2 = sum over the places where w_ij is used of  h_i x_j^2
    linear     h_x = (W o W)^T h_a,           elementwise    h_a = f'(a)^2 h_x + f''(a) dE/dx

The Levenberg-Marquardt form leaves f'' out, and every h stays >= 0. A convolution is linear with shared weights, so the same squares go
through its own derivatives. Cross terms between the units of a layer are left out below the top one: it is not the exact diagonal.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from secateur.activations import run_hooked
from secateur.chains import chain_of
from secateur.errors import UnknownLayer
from secateur.examples import leaving_no_trace
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
    chain = chain_of(model, batch, task)
    path_of = {model.get_submodule(path): path for path in chain}
    if not chain:
        raise UnknownLayer(f"{type(model).__name__} is no chain of layers; diagonal='hutchinson' works for any network")
    loss = task.needs_loss("the recursion")
    flow = _flow(model, list(path_of), task, batch)
    with leaving_no_trace(model), torch.enable_grad():
        first, second = _at_output(
            lambda out: loss(_Answer(out), batch),  # type: ignore[arg-type]
            flow[-1],
        )
        found: dict[str, Tensor] = {}
        for module, x in zip(reversed(path_of), reversed(flow[:-1]), strict=True):
            if isinstance(module, _Linear):
                for name, value in _of_weights(module, x, second).items():
                    found[f"{path_of[module]}.{name}"] = value
            first, second = _before(module, x, first, second, levenberg=levenberg)
    return found


def _flow(model: nn.Module, chain: list[nn.Module], task: Task, batch: Any) -> list[Tensor]:
    """What goes into each layer of the chain, and what comes out of the last, which is what the network gives.

    Raises:
        UnknownLayer: it gives something else.
    """
    given: list[Any] = []
    run_hooked(model, batch, task, [model.register_forward_hook(lambda _m, _a, out: given.append(out))])
    flow = [batch[0] if isinstance(batch, tuple | list) else batch]
    with leaving_no_trace(model):
        for module in chain:
            flow.append(module(flow[-1].clone()).detach())
    whole = given[0] if len(given) == 1 and isinstance(given[0], Tensor) else None
    if whole is None or whole.shape != flow[-1].shape or not torch.allclose(whole, flow[-1], rtol=1e-4, atol=1e-5):
        names = ", ".join(type(module).__name__ for module in chain[:4])
        raise UnknownLayer(
            f"{type(model).__name__} computes more than its chain of {len(chain)} layers ({names}, ...), which is all that the recursion goes "
            "through; diagonal='hutchinson' works for any network"
        )
    return flow


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
    raise UnknownLayer(
        f"the recursion has no rule for {type(module).__name__}; fold batch norms away, or use diagonal='hutchinson', which works for any network"
    )


def _shares(pool: nn.AvgPool2d, x: Tensor) -> Tensor:
    """What each window's entries are multiplied by, ``[1, channels, *windows]``: the padding, edges and a divisor of its own all have a say."""
    ones = torch.ones_like(x[:1])
    entries = avg_pool2d(ones, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, divisor_override=1)
    return pool(ones) / entries  # type: ignore[no-any-return]
