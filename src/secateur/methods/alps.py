"""ALPS: every layer pruned after training by ADMM on what it computes, without labels (Meng et al. 2024); see `secateur.solvers.layer_admm`.

calibration batches --> H = X X^T of every layer, one pass --> layer by layer: ADMM, then least squares on the support
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.activations import columns_of, matrix_of, run_batch
from secateur.errors import BadScores, NeedsTask, NothingToPrune
from secateur.examples import leaving_no_trace
from secateur.graphs import copied
from secateur.masks import Masks
from secateur.names import allocation_of, granularity_of
from secateur.notes import describe, notes_on
from secateur.planning import agreed_sparsity, plan
from secateur.profiling.profile import compare
from secateur.protocols import Allocation, Granularity, Targets
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.solvers.layer_admm import LayerFit, layer_admm
from secateur.targets import Ignore, find_targets
from secateur.task import Task

__all__ = ["ALPS"]


@final
@dataclass(frozen=True, kw_only=True)
class ALPS:
    """Prune a trained model layer by layer; each layer loses the same fraction.

    Args:
        sparsity: the fraction removed from every layer. With an N:M granularity leave it out.
        granularity: "unstructured", "2:4", "block:4x1", "filter", ...
        damping: what is added to the diagonal of H, relative to its mean.
        rho: the first penalty.
        iterations: of ADMM in each layer, at most.
        refit: steps of conjugate gradients afterwards.
        ignore: what to leave alone. Grouped and transposed convolutions, embeddings and recurrent layers are left alone as well.
    """

    sparsity: float | None = None
    granularity: str | Granularity = "unstructured"
    damping: float = 1e-2
    rho: float = 0.1
    iterations: int = 300
    refit: int = 20
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        if not self.rho > 0 or self.damping < 0 or self.iterations < 1 or self.refit < 0:
            raise BadScores(
                f"rho={self.rho} must be above 0, damping={self.damping} and refit={self.refit} 0 or more, iterations={self.iterations} 1 or more"
            )

    def __call__(self, model: nn.Module, *, task: Task | None = None, example_inputs: Any = None) -> Pruned:
        """Return a pruned copy of ``model`` with masks and receipt; ``settings`` of the receipt has each layer's error.

        Raises:
            NeedsTask: no batches.
            NothingToPrune: no layer of a kind that this method knows.
            BadPattern, BadSparsity, UnknownName: see the parts.
        """
        if task is None:
            raise NeedsTask("ALPS looks at what flows through the network: pass task=sc.Task(batches)")
        found = find_targets(model, ignore=self.ignore)
        layers = _layers(model, found)
        pattern = granularity_of(self.granularity)
        facts = {name: found[name] for name in layers}
        weights = {name: model.get_parameter(name).detach() for name in layers}
        sparsity = agreed_sparsity(pattern, Scores(weights, facts=facts), self.sparsity)
        share = None if pattern.quota is not None else allocation_of("layer", sparsity)
        grams = _grams(model, layers, task)
        after, masks, fits = copied(model), dict[str, Tensor](), dict[str, LayerFit]()
        for name, module in layers.items():
            fit = self._fit(
                module, grams.pop(name), partial(_project, name, facts, pattern, share, shape=weights[name].shape)
            )
            fits[name], masks[name] = fit, fit.mask.reshape(weights[name].shape)
            with torch.no_grad():
                after.get_parameter(name).copy_(fit.weights.reshape(weights[name].shape))
        errors = {name: fit.error for name, fit in fits.items()}
        worst = max(errors, key=lambda name: errors[name])
        report = compare(
            model,
            after,
            example_inputs,
            task=task,
            method=f"ALPS (layer-wise ADMM), {describe(pattern)}, sparsity {sparsity:g} in every layer",
            settings={"errors": errors, "iterations": {name: fit.iterations for name, fit in fits.items()}},
            notes=(
                f"Relative reconstruction error of the layers: {sum(errors.values()) / len(errors):.2%} in the mean, {errors[worst]:.2%} at most "
                f"({worst}), on the calibration batches",
                *notes_on(model, Masks(masks)),
            ),
        )
        return Pruned(after, Masks(masks), report)

    def _fit(self, module: nn.Module, gram: Tensor, project: Callable[[Tensor], Tensor]) -> LayerFit:
        return layer_admm(
            matrix_of(module),
            gram,
            project,
            damping=self.damping,
            rho=self.rho,
            iterations=self.iterations,
            refit=self.refit,
        )


def _project(
    name: str, facts: Targets, pattern: Granularity, share: Allocation | None, matrix: Tensor, *, shape: torch.Size
) -> Tensor:
    """The mask of the weights nearest to ``matrix`` that keep the pattern."""
    scores = Scores({name: matrix.reshape(shape)}, each=torch.square, facts={name: facts[name]})
    return plan(scores, pattern, share)[name].reshape(matrix.shape)


def _layers(model: nn.Module, targets: Targets) -> dict[str, nn.Module]:
    """Linear layers and plain convolutions among the targets."""
    layers = {}
    for name, facts in targets.items():
        module = model.get_submodule(facts.module)
        plain = isinstance(module, nn.Linear) or (
            isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1 and not module.transposed
        )
        if plain and name == f"{facts.module}.weight".lstrip("."):
            layers[name] = module
    if not layers:
        raise NothingToPrune(f"{type(model).__name__} has no linear layer or plain convolution left to prune")
    return layers


def _grams(model: nn.Module, layers: Mapping[str, nn.Module], task: Task) -> dict[str, Tensor]:
    """``sum x x^T`` of what every layer takes in, over all batches."""
    grams: dict[str, Tensor] = {}

    def hear(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            x = columns_of(module, args[0].detach()).float()
            grams[name] = grams.get(name, 0) + (x @ x.t()).double()

        return hook

    handles = [module.register_forward_pre_hook(hear(name)) for name, module in layers.items()]
    try:
        for batch in task.each_batch("ALPS"):
            with leaving_no_trace(model):
                run_batch(model, batch, task)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in layers if name not in grams]
    if missing:
        raise NothingToPrune(
            f"{', '.join(missing)} did not run on the calibration batches: exclude them with ignore={missing!r}"
        )
    return grams
