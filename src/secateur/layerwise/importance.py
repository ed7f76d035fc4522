"""What an error of each output of a layer counts for the network: mean squares of gradients at the outputs.

    loss rise ~ 1/2 sum over layers, rows r    I_r * e_r,      I_r = sum over places of g_r^2,    e_r = mean squared output error of row r

With a loss, g is its gradient (the empirical Fisher at outputs; the loss's labels are used). Without one, g is that of a random
projection of what the network gives, so that I measures squared output error and no label is looked at.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from secateur.activations import called, fresh
from secateur.errors import BadCalibration, NeedsTask
from secateur.facts import LayerFacts
from secateur.gradients import evaluating
from secateur.layerwise.projecting import projected_apart
from secateur.layerwise.ties import paths_of
from secateur.task import Task

__all__ = ["importance_of"]


def importance_of(
    model: nn.Module,
    targets: Mapping[str, LayerFacts],
    task: Task,
    batches: Sequence[Any],
    *,
    seed: int = 0,
    uses: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Tensor]:
    """``[rows]`` for every parameter in ``targets``, summed over batches; the model is left as it was.

    Args:
        model: the network.
        targets: the parameters; layers whose output is not theirs row by row (recurrent ones) get one number for all rows.
        task: its loss, where it has one.
        batches: what the network is run on.
        seed: of the projections.
        uses: for each parameter the names under which layers hold it, where several share it (`secateur.layerwise.ties`); all of them are summed.
    """
    held = {name: (uses or {}).get(name, (name,)) for name in targets}
    paths = {path for names in held.values() for path in paths_of(names)}
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    with _noted(model, paths) as outs:
        for batch in batches:
            with evaluating(model), torch.enable_grad():
                value = _value(model, batch, task, generator)
                _refuse_useless(value, "Task.loss" if task.loss else type(model).__name__)
                found = torch.autograd.grad(value, [out for _, out in outs], allow_unused=True)
            for (path, _), gradient in zip(outs, found, strict=True):
                if gradient is not None:
                    squares = _by_row(_module_at(model, path), gradient.double())
                    sums[path] = sums[path] + squares if path in sums else squares
            outs.clear()
    return {
        name: _fitting(model, name, facts, [_of(use, sums) for use in held[name]]) for name, facts in targets.items()
    }


@contextmanager
def _noted(model: nn.Module, paths: Iterable[str]) -> Iterator[list[tuple[str, Tensor]]]:
    """What these layers give while the model runs, to be differentiated by; no parameter is."""
    outs: list[tuple[str, Tensor]] = []

    def handed_on(path: str, flow: Tensor) -> Tensor:
        if flow.is_inference():
            raise NeedsTask(
                f"{path!r} runs in inference mode, where nothing is differentiated: pass scope='layer', which needs no gradients"
            )
        if not flow.requires_grad:
            flow = flow.detach().requires_grad_(True)
        outs.append((path, flow))
        return flow.clone()  # what follows may change it in place

    def note(path: str, out: Any) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        packed = isinstance(first, PackedSequence)
        handed = handed_on(path, first.data if packed else first)
        handed = first._replace(data=handed) if packed else handed
        return (handed, *out[1:]) if isinstance(out, tuple) else handed

    modules = {path: model.get_submodule(path) for path in paths}
    handles = [
        module.register_forward_hook(lambda _m, _a, out, path=path: note(path, out)) for path, module in modules.items()
    ]
    attentions = {path: module for path, module in modules.items() if isinstance(module, nn.MultiheadAttention)}
    handles += [handle for path, module in attentions.items() for handle in projected_apart(module, path, handed_on)]
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield outs
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _value(model: nn.Module, batch: Any, task: Task, generator: torch.Generator) -> Tensor:
    if task.loss is not None:
        return task.needs_loss("the weighing of errors")(model, fresh(batch))
    out = called(model, batch)
    real = [leaf for leaf in _tensors(out) if leaf.is_floating_point()]
    if not real:
        raise NeedsTask(
            f"{type(model).__name__} gives {type(out).__name__}, in which no floating-point tensor is found: pass Task(batches, loss=...), which "
            "knows what to do with it, or scope='layer', which needs none"
        )
    return torch.stack([(leaf * torch.randn(leaf.shape, generator=generator).to(leaf)).sum() for leaf in real]).sum()


def _tensors(out: Any) -> Iterator[Tensor]:
    """What a model gives, also in mappings and data classes of its own, which torch's trees do not open."""
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from _tensors(list(leaf.values()))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _tensors([getattr(leaf, part.name) for part in fields(leaf)])


def _refuse_useless(value: Tensor, who: str) -> None:
    if not bool(torch.isfinite(value)):
        raise BadCalibration(
            f"{who} gave {float(value.detach())} on a calibration batch: its gradients say nothing; look at the loss, the labels and the inputs"
        )
    if not value.requires_grad:
        raise NeedsTask(
            f"{who} gave a number without a gradient (detached, or made under no_grad): return the tensor itself, or pass "
            "scope='layer', which needs none"
        )


def _by_row(module: nn.Module | None, gradient: Tensor) -> Tensor:
    dim = (
        1
        if isinstance(module, nn.modules.conv._ConvNd) and gradient.dim() == module.weight.dim()
        else gradient.dim() - 1
    )
    dim = 0 if isinstance(module, nn.modules.conv._ConvNd) and gradient.dim() < module.weight.dim() else dim
    return gradient.movedim(dim, 0).reshape(gradient.shape[dim], -1).square().sum(1)


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The layer there; None for a projection inside of attention."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _of(name: str, sums: Mapping[str, Tensor]) -> Tensor | None:
    """Of a parameter: of its rows, of its layer, or of the attention whose out-projection that is; None where none was called."""
    path, _, attribute = name.rpartition(".")
    if attribute == "in_proj_weight" and f"{path}.q_proj_weight" in sums:
        return torch.cat([sums[f"{path}.{which}_proj_weight"] for which in "qkv"])
    return sums.get(name, sums.get(path, sums.get(path.rpartition(".")[0])))


def _fitting(model: nn.Module, name: str, facts: LayerFacts, sums: Sequence[Tensor | None]) -> Tensor:
    rows = facts.canonical(model.get_parameter(name).detach()).shape[0]
    known = [found if len(found) == rows else found.mean().expand(rows) for found in sums if found is not None]
    total = torch.stack(known).sum(0) if known else torch.ones(rows, dtype=torch.float64)
    return total.clamp_min(1e-12 * float(total.max()) or 1e-300)
