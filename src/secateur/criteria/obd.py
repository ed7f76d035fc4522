"""Optimal brain damage: half the second derivative times the weight squared (LeCun, Denker & Solla 1990, eq. 5).

    score(w) = 1/2 |h_ww| w^2

What stands for h_ww is named, because the estimates differ:

    "hutchinson"  E[z * (H z)], z = +-1: unbiased for the Hessian's diagonal, any network
    "exact"       the Hessian's diagonal, one product for each weight: small networks
    "recursion"   the paper's backward recursion, with f''; "levenberg": without it, never negative. Chains of layers only
    "squared", "cross_entropy", "sampled", "empirical"   diagonals of Gauss-Newton and Fisher matrices; see `secateur.curvatures.jacobians`

Where curvature is negative its size counts: such a weight sits on a ridge and is not free to leave.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.counting import check_number
from secateur.curvatures.backward import recursive_diagonal
from secateur.curvatures.class_axis import check_classes
from secateur.curvatures.jacobians import CURVATURES, curvature_rows, parts_of
from secateur.curvatures.outcomes import LABELS
from secateur.curvatures.vetting import vetted
from secateur.errors import NeedsTask, UnknownName
from secateur.examples import leaving_no_trace
from secateur.gates import examples_in
from secateur.protocols import Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["Obd"]

_OWN = ("hutchinson", "exact", "recursion", "levenberg")
_CHUNK = 64


@final
@dataclass(frozen=True, kw_only=True)
class Obd:
    """Score every weight by half its curvature times its square.

    Args:
        diagonal: where the curvature comes from, see above.
        probes: random vectors for "hutchinson", on every batch.
        seed: of them, and of "sampled".
        classes: the axis of the output that holds the classes, for "cross_entropy" and "sampled"; None: by its shape
            (`secateur.curvatures.class_axis`).
    """

    diagonal: str = "hutchinson"
    probes: int = 8
    seed: int = 0
    classes: int | None = None

    controlled: ClassVar[bool] = True  # receipts put magnitude and random beside it

    def __post_init__(self) -> None:
        if self.diagonal not in (*_OWN, *CURVATURES):
            raise UnknownName(f"diagonal={self.diagonal!r} is not known: use one of {', '.join((*_OWN, *CURVATURES))}")
        check_number("probes", self.probes, 1, whole=True)
        check_classes(self.classes)

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:
        """Score every parameter in ``targets``.

        Raises:
            NeedsTask: no batches, or no loss where one is needed.
            UnknownLayer: "recursion" and "levenberg" on a network that is no chain.
        """
        if task is None:
            raise NeedsTask(
                "optimal brain damage needs data: pass task=sc.Task(batches, loss=lambda model, batch: ...)"
            )
        weights = {name: model.get_parameter(name).detach() for name in targets}
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        samples = 0
        for found, size in self._diagonals(model, targets, task):
            samples += size
            for name in total.keys() & found.keys():  # what is in no chain that gives the output changes nothing
                total[name] += found[name].detach() * size
        said = f"{LABELS.get(self.diagonal, 'the labels of the task')}, {samples} samples"
        return Scores({n: (total[n] / samples).abs() * w.square() / 2 for n, w in weights.items()}, said=said)

    def _diagonals(self, model: nn.Module, targets: Targets, task: Task) -> Iterator[tuple[Mapping[str, Tensor], int]]:
        """Of the mean loss over each batch, and how many samples that has."""
        names = list(targets)
        if self.diagonal in CURVATURES:
            how: dict[str, Any] = {"seed": self.seed, "classes": self.classes}
            for rows, samples in curvature_rows(model, names, task, self.diagonal, who="optimal brain damage", **how):
                yield parts_of(rows.square().sum(0) / samples, model, names), samples
            return
        loss = task.needs_loss("optimal brain damage")
        generator = torch.Generator().manual_seed(self.seed)
        for batch in vetted(task.each_batch("optimal brain damage")):
            if self.diagonal in ("recursion", "levenberg"):
                yield recursive_diagonal(model, task, batch, levenberg=self.diagonal == "levenberg"), examples_in(batch)
                continue
            with (
                leaving_no_trace(model),
                torch.enable_grad(),
                sdpa_kernel(SDPBackend.MATH),
                _asking(model, names) as own,
            ):
                gradients = torch.autograd.grad(
                    loss(model, batch), own, create_graph=True, allow_unused=True, materialize_grads=True
                )
                yield dict(zip(names, self._diagonal(gradients, own, generator), strict=True)), examples_in(batch)

    def _diagonal(self, gradients: tuple[Tensor, ...], own: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        if self.diagonal == "exact":
            return [_exact(g, w) for g, w in zip(gradients, own, strict=True)]
        total = [torch.zeros_like(w) for w in own]
        for _ in range(self.probes):
            signs = [(torch.randint(0, 2, w.shape, generator=generator) * 2 - 1).to(w) for w in own]
            product = sum((g * z).sum() for g, z in zip(gradients, signs, strict=True))
            moved = _derived(product, own)
            total = [t + z * m / self.probes for t, z, m in zip(total, signs, moved, strict=True)]
        return total


def _derived(value: Any, own: list[Tensor]) -> tuple[Tensor, ...]:
    if not value.requires_grad:  # the loss is linear in all of them
        return tuple(torch.zeros_like(w) for w in own)
    return torch.autograd.grad(value, own, retain_graph=True, allow_unused=True, materialize_grads=True)


def _exact(gradient: Tensor, weight: Tensor) -> Tensor:
    flat, diagonal = gradient.reshape(-1), torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    if not flat.requires_grad:
        return diagonal.view_as(weight)
    for start in range(0, len(flat), _CHUNK):
        stop = min(start + _CHUNK, len(flat))
        basis = torch.eye(len(flat), dtype=weight.dtype, device=weight.device)[start:stop]
        (rows,) = torch.autograd.grad(
            flat, weight, basis, retain_graph=True, is_grads_batched=True, allow_unused=True, materialize_grads=True
        )
        diagonal[start:stop] = rows.reshape(stop - start, -1)[:, start:stop].diagonal()
    return diagonal.view_as(weight)


class _asking:  # noqa: N801  # used like a function
    """Parameters that ask for derivatives for a while."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.own: list[Tensor] = [model.get_parameter(name) for name in names]

    def __enter__(self) -> list[Tensor]:
        self.before = [w.requires_grad for w in self.own]
        for weight in self.own:
            weight.requires_grad_(True)
        return self.own

    def __exit__(self, *_: object) -> None:
        for weight, asked in zip(self.own, self.before, strict=True):
            weight.requires_grad_(asked)
