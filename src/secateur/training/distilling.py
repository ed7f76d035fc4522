"""Distillation: a narrowed network learns from the dense one, not only from labels (Hinton, Vinyals & Dean 2015).

    L = (1 - w) * loss  +  w * T^2 * KL( softmax(teacher / T) || softmax(student / T) )

T^2 keeps the weight of the second term the same for all T, since its gradient falls as 1/T^2 (section 2). For regression the second
term is the mean squared difference. Features are compared by which examples of a batch look alike in them (Tung & Mori 2019, "Similarity-
preserving knowledge distillation", eq. 1 to 4), which does not depend on how many channels there are:

    G = X X^T,   rows of norm 1;       | G_student - G_teacher |_F^2 / N^2              (X: one row of features for each of N examples)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.activations import run_batch
from secateur.errors import UnknownName, WrongModel
from secateur.gradients import evaluating

__all__ = ["distillation", "soft_distance"]

Loss = Callable[[nn.Module, Any], Tensor]


def distillation(
    teacher: nn.Module,
    loss: Loss | None = None,
    *,
    temperature: float | None = 4.0,
    weight: float = 0.5,
    features: Mapping[str, float] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    dim: int = -1,
) -> Loss:
    """A loss ``loss(model, batch)`` that pulls a model towards ``teacher``, for training loops and for `Task`.

    The teacher runs on what the model was called with, in eval mode and without gradients, and is left as it was.

    Args:
        teacher: usually the dense model.
        loss: the loss on labels, ``loss(model, batch)``, which calls the model once; None: no labels, then a batch is the model's input
            or begins with it.
        temperature: T; None compares outputs by their mean squared difference (regression).
        weight: w, how much the teacher counts against the labels.
        features: module paths, the same in both, to the weight of their similarity term; the paper's is 3000.
        logits: takes the tensor to be compared out of what the model returns, where that is no tensor.
        dim: along which the classes lie.

    Raises:
        WrongModel: the temperature or the weight makes no sense.

    >>> teacher = nn.Linear(2, 2)
    >>> loss = distillation(teacher, lambda model, batch: model(batch).square().mean())
    >>> float(loss(nn.Linear(2, 2).requires_grad_(False), torch.ones(3, 2))) > 0
    True
    """
    if (temperature is not None and not temperature > 0) or not 0 <= weight <= 1:
        raise WrongModel(
            f"temperature={temperature} must be above 0 (or None for regression), weight={weight} between 0 and 1"
        )
    paths = dict(features or {})

    def distilled(model: nn.Module, batch: Any) -> Tensor:
        if model is teacher:
            raise WrongModel("a model cannot be its own teacher: pass copy.deepcopy(model) before it is pruned")
        with _watching(model, paths) as student:
            hard = loss(model, batch) if loss else None
            if loss is None:
                run_batch(model, batch)
        if not student.calls:
            raise WrongModel("the loss given to distillation() did not call the model that it was given")
        args, kwargs = student.calls[-1]
        with torch.no_grad(), evaluating(teacher), _watching(teacher, paths) as taught:
            teacher(*args, **kwargs)
        ours, theirs = (logits(s.out[""]) if logits else s.out[""] for s in (student, taught))
        total = soft_distance(ours, theirs, temperature, dim)
        if hard is not None:
            total = (1 - weight) * hard + weight * total
        for path, factor in paths.items():
            total = total + factor * _unlikeness(student.out[path], taught.out[path])
        return total

    return distilled


def soft_distance(ours: Tensor, theirs: Tensor, temperature: float | None, dim: int) -> Tensor:
    """The distance of two outputs, averaged over examples and places."""
    if not isinstance(ours, Tensor):
        raise WrongModel(
            f"the model returns a {type(ours).__name__}, no tensor: pass distillation(..., logits=lambda out: out['logits']), say"
        )
    if ours.shape != theirs.shape:
        raise WrongModel(
            f"the model's output is {list(ours.shape)}, the teacher's {list(theirs.shape)}: distillation needs the same"
        )
    if temperature is None:
        return functional.mse_loss(ours.float(), theirs.float())
    mine, its = ((t.float() / temperature).log_softmax(dim) for t in (ours, theirs))
    return temperature**2 * (its.exp() * (its - mine)).sum(dim).mean()


def _unlikeness(ours: Tensor, theirs: Tensor) -> Tensor:
    grams = [functional.normalize(x.float().flatten(1) @ x.float().flatten(1).t(), dim=1) for x in (ours, theirs)]
    return (grams[0] - grams[1]).square().sum() / len(ours) ** 2


class _Seen:
    """What a model was called with, and what it and some of its modules returned last."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any]] = []
        self.out: dict[str, Any] = {}


@contextmanager
def _watching(model: nn.Module, paths: Mapping[str, float]) -> Iterator[_Seen]:
    seen, modules = _Seen(), dict(model.named_modules())
    for path in paths:
        if path not in modules:
            raise UnknownName(
                f"features={{{path!r}: ...}}: {type(model).__name__} has no such module; it has {', '.join(list(modules)[1:9])}, ..."
            )

    def note(path: str) -> Callable[..., None]:
        return lambda _module, _args, out: seen.out.__setitem__(path, out)

    handles = [modules[path].register_forward_hook(note(path)) for path in ("", *paths)]
    handles.append(model.register_forward_pre_hook(lambda _module, *given: seen.calls.append(given), with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
