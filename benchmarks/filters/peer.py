"""Torch-Pruning at the same cost: its ratio is searched by halving until the network costs at most as many multiply-accumulates."""

import copy
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

import secateur as sc
from benchmarks.filters.networks import Network


def pruned(network: Network, case: tuple[str, str, bool], share: float, known: dict[str, Any]) -> nn.Module:
    """The largest network within the budget that a ratio gives; the gradients of the dense network are ``known`` after the first row."""
    if case[0].endswith("taylor") and "gradients" not in known:
        known["gradients"] = _gradients(network)
    low, high, best = 0.0, 0.95, None
    whole = sc.profile(network.model, network.example).macs
    for _ in range(8):
        ratio = (low + high) / 2
        thin = _at(network, case, ratio, known)
        if sc.profile(thin, network.example).macs <= share * whole:
            high, best = ratio, thin
        else:
            low = ratio
    if best is None:
        raise RuntimeError(f"no ratio up to {high:.2f} brings the network down to {share:.0%}")
    return best


def _gradients(network: Network) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(network.model)
    model.zero_grad()
    for batch in network.calibration:
        network.loss(model, batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _at(network: Network, case: tuple[str, str, bool], ratio: float, known: dict[str, Any]) -> nn.Module:
    import torch_pruning as tp

    model = copy.deepcopy(network.model)
    taylor = case[0].endswith("taylor")
    importance = tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance(p=2)
    before = [t.shape for t in _outputs(model, network.example)]
    pruner = tp.pruner.BasePruner(
        model,
        network.example,
        importance=importance,
        pruning_ratio=ratio,
        global_pruning=case[1] == "global",
        ignored_layers=[
            m for path, m in model.named_modules() if path and (path == network.head or _held(network, path, m))
        ],
        num_heads={} if network.held else _heads(model),
    )
    if taylor:
        for name, gradient in known["gradients"].items():
            model.get_parameter(name).grad = gradient.clone()
    pruner.step()
    if [t.shape for t in _outputs(model, network.example)] != before:
        raise RuntimeError("its outputs have another shape")
    return model


def _held(network: Network, path: str, module: nn.Module) -> bool:
    wide = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    return wide and any(fnmatch(path, glob) for glob in network.held)


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Torch-Pruning has to be told."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(getattr(module, "num_heads", None), int):
            found |= {m: module.num_heads for m in module.children() if isinstance(m, nn.Linear)}
    return found


@torch.no_grad()
def _outputs(model: nn.Module, example: Any) -> list[torch.Tensor]:
    out = model.eval()(*example) if isinstance(example, tuple) else model.eval()(example)
    return [out] if isinstance(out, torch.Tensor) else list(out)
