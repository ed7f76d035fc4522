"""How far a network's output can be off when every layer is off a little (Dong, Chen & Pan 2017, theorem 3.2).

    sqrt E^L  <=  sum_k  ( prod_{l > k} ||W_l|| )  sqrt dE^k,      ||W|| the Frobenius norm (the paper) or the spectral norm (tighter)

It holds for chains of linear layers with activations that do not stretch (ReLU, identity, dropout in eval mode), all of which see as many
samples: nothing is flattened after the first. Norms are those of the
pruned layers where every layer was measured on the dense network's inputs, and of the dense ones where it was on the pruned network's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.activations import run_hooked
from secateur.gradients import evaluating
from secateur.task import Task

__all__ = ["bound_of"]

_PLAIN = (nn.ReLU, nn.Identity, nn.Flatten, nn.Dropout, nn.Tanh, nn.Sigmoid)


def bound_of(
    dense: nn.Module,
    pruned: nn.Module,
    chain: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    apart: bool,
    batches: Sequence[Any],
    task: Task,
) -> dict[str, float]:
    """``{"paper": ..., "spectral": ..., "measured": ...}``: root mean squares of the output's error; empty where the theorem does not hold.

    Args:
        dense: the network before.
        pruned: after.
        chain: paths of its layers, in running order.
        rows: of the receipt: what each layer was off by (``measured``), by parameter.
        apart: whether that was on the dense network's inputs.
        batches: the calibration data.
        task: says how a batch is run.
    """
    modules = {path: dense.get_submodule(path) for path in chain}
    layers = [path for path, module in modules.items() if isinstance(module, nn.Linear)]
    after = [modules[path] for path in list(chain)[chain.index(layers[0]) :]] if layers else []
    off = {row["name"].rpartition(".")[0]: float(row.get("measured", 0.0)) for row in rows}
    if not layers or set(off) - set(layers) or not all(_keeps_size(m) for m in modules.values()):
        return {}
    if any(isinstance(m, nn.Flatten) for m in after) or any("seen" in row for row in rows):
        return {}  # errors of a part of the samples bound nothing
    measured = _measured(dense, pruned, chain, batches, task)
    if measured is None:
        return {}
    found = {"paper": 0.0, "spectral": 0.0}
    factors = dict.fromkeys(found, 1.0)
    model = pruned if apart else dense
    for path in reversed(layers):
        for kind in found:
            found[kind] += factors[kind] * max(off.get(path, 0.0), 0.0) ** 0.5
        layer: Any = model.get_submodule(path)
        with evaluating(model):  # spectral norm takes a step whenever its weight is read in training
            weight = layer.weight.detach().double()  # also where it is computed and no parameter, as under weight norm
        factors["paper"] *= float(weight.norm())
        factors["spectral"] *= float(torch.linalg.matrix_norm(weight, 2))
    return found | {"measured": measured}


def _keeps_size(module: nn.Module) -> bool:
    """Whether differences are no larger after it, the linear layers aside."""
    if isinstance(module, nn.LeakyReLU):
        return abs(module.negative_slope) <= 1
    return isinstance(module, (nn.Linear, *_PLAIN))


def _measured(
    dense: nn.Module, pruned: nn.Module, chain: Sequence[str], batches: Sequence[Any], task: Task
) -> float | None:
    """None where the network gives something else than its chain does."""
    total, count = 0.0, 0
    for batch in batches:
        one, other = (_output(model, chain[-1], batch, task) for model in (dense, pruned))
        if one is None or other is None:
            return None
        total += float((one - other).double().square().sum())
        count += one.numel() // one.shape[-1]
    return math.sqrt(total / max(count, 1))


def _output(model: nn.Module, last: str, batch: Any, task: Task) -> Tensor | None:
    seen: list[Any] = []
    modules = (model.get_submodule(last), model)
    hooks = [module.register_forward_hook(lambda _m, _a, out: seen.append(out)) for module in modules]
    run_hooked(model, batch, task, hooks)
    inner, whole = seen[0], seen[-1]
    if not isinstance(inner, Tensor) or not isinstance(whole, Tensor) or inner.shape != whole.shape:
        return None
    return whole if torch.equal(inner, whole) else None
