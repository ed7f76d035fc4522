"""The functions of ``torch.nn.utils.prune`` on Secateur's `plan`, and the way in and out of its layout.

``from secateur.integrations import torch_prune as prune`` is the only line to change. Amounts mean what they mean in torch (a
float is a fraction of what is left, an int a number of weights or channels) and masks accumulate, but ties go to the earlier
weight, NaN is refused, and nothing is half done when something fails.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as theirs

from secateur.errors import BadPattern, BadScores, BadSparsity
from secateur.granularities.unstructured import Unstructured
from secateur.integrations.torch_layout import (
    absorb_,
    absorb_state_dict,
    custom_from_mask,
    identity,
    kept_of,
    read,
    remove,
    tensor_of,
    write_,
)
from secateur.masks import Masks
from secateur.planning import plan
from secateur.ranking.selection import counts_of_top
from secateur.scores import Scores
from secateur.units import Units

__all__ = [
    "absorb_",
    "absorb_state_dict",
    "custom_from_mask",
    "global_unstructured",
    "identity",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "random_structured",
    "random_unstructured",
    "read",
    "remove",
    "write_",
]

is_pruned = theirs.is_pruned


def l1_unstructured(module: nn.Module, name: str, amount: float, importance_scores: Tensor | None = None) -> nn.Module:
    """Remove the ``amount`` of remaining weights with the smallest absolute value (or importance).

    Raises:
        BadSparsity: the amount is negative, a fraction above 1, or more than is left.
        BadScores: ``importance_scores`` has another shape, or something is NaN.
    """
    _remove_lowest([(module, name)], [_importance(module, name, importance_scores)], amount)
    return module


def random_unstructured(
    module: nn.Module, name: str, amount: float, *, generator: torch.Generator | None = None
) -> nn.Module:
    """Remove an ``amount`` of the remaining weights at random; from torch's global generator, as torch does, unless one is given.

    Raises:
        BadSparsity: as `l1_unstructured`.
    """
    _remove_lowest([(module, name)], [_drawn(module, name, generator)], amount)
    return module


def global_unstructured(
    parameters: Iterable[tuple[nn.Module, str]],
    pruning_method: type[theirs.BasePruningMethod] = theirs.L1Unstructured,
    importance_scores: Mapping[tuple[nn.Module, str], Tensor] | None = None,
    *,
    amount: float,
    generator: torch.Generator | None = None,
) -> None:
    """Remove an ``amount`` of the remaining weights of all ``parameters`` by one ranking.

    Args:
        parameters: pairs of module and parameter name; a generator will do.
        pruning_method: ``torch.nn.utils.prune.L1Unstructured`` or ``RandomUnstructured``.
        importance_scores: by the same pairs; weights rank by their own values where it has none.
        amount: a fraction of what is left in all of them, or a number of weights.
        generator: for ``RandomUnstructured``.

    Raises:
        BadSparsity, BadScores: as `l1_unstructured`.
        TypeError: another pruning method, or arguments of the wrong kind.
    """
    if not isinstance(parameters, Iterable) or not isinstance(importance_scores or {}, Mapping):
        raise _WrongKind(
            "global_unstructured takes pairs (module, name), and importance scores in a dict by such pairs"
        )
    places, given = list(parameters), importance_scores or {}
    if pruning_method is theirs.L1Unstructured:
        scores = [_importance(module, name, given.get((module, name))) for module, name in places]
    elif pruning_method is theirs.RandomUnstructured:
        scores = [_drawn(module, name, generator) for module, name in places]
    else:
        raise _WrongKind(f"global_unstructured ranks by L1Unstructured or RandomUnstructured, not {pruning_method}")
    _remove_lowest(places, scores, amount)


def ln_structured(  # noqa: PLR0917  # torch's own signature
    module: nn.Module,
    name: str,
    amount: float,
    n: float | str,
    dim: int,
    importance_scores: Tensor | None = None,
) -> nn.Module:
    """Remove the ``amount`` of remaining channels along ``dim`` with the smallest ``n``-norm.

    Raises:
        BadSparsity, BadScores: as `l1_unstructured`.
        BadPattern: a vector has no channels, or ``dim`` is out of range.
    """
    scores = _importance(module, name, importance_scores)
    others = _dims_but(scores, dim)
    if n == "nuc":
        norms = torch.linalg.matrix_norm(scores, ord="nuc", dim=others)
    else:
        norms = torch.linalg.vector_norm(scores, ord=2 if n == "fro" else n, dim=others)
    return _remove_channels(module, name, amount, dim=dim, scores=norms)


def random_structured(
    module: nn.Module, name: str, amount: float, dim: int, *, generator: torch.Generator | None = None
) -> nn.Module:
    """Remove an ``amount`` of the remaining channels along ``dim`` at random; see `random_unstructured`.

    Raises:
        BadSparsity, BadPattern: as `ln_structured`.
    """
    tensor = tensor_of(module, name)
    _dims_but(tensor, dim)
    drawn = torch.rand(tensor.shape[dim], generator=generator).to(tensor.device)
    return _remove_channels(module, name, amount, dim=dim, scores=drawn)


@final
@dataclass(frozen=True)
class _Keep:
    """The allocation behind torch's amounts: so many in total, by one ranking."""

    count: int

    def __call__(self, units: Units) -> Mapping[str, int]:
        return counts_of_top(units, self.count)


class _WrongKind(BadSparsity, TypeError):
    """Torch raises TypeError here, so this is one too."""


class _NoSuchDim(BadPattern, IndexError):
    """Torch raises IndexError here, so this is one too."""


def _remove_lowest(places: list[tuple[nn.Module, str]], scores: list[Tensor], amount: float) -> None:
    kept = {str(number): kept_of(module, name) for number, (module, name) in enumerate(places)}
    ranked = Scores({str(number): score for number, score in enumerate(scores)}, each=torch.abs)
    masks = _fewer(ranked, Masks(kept), amount)
    for number, (module, name) in enumerate(places):
        custom_from_mask(module, name, masks[str(number)])


def _remove_channels(module: nn.Module, name: str, amount: float, *, dim: int, scores: Tensor) -> nn.Module:
    kept = kept_of(module, name)
    alive = kept.any(dim=_dims_but(kept, dim)) if kept.dim() > 1 else kept
    chosen = _fewer(Scores({name: scores}), Masks({name: alive}), amount)[name]
    shape = [-1 if d == dim % kept.dim() else 1 for d in range(kept.dim())]
    return custom_from_mask(module, name, kept & chosen.view(shape))


def _fewer(scores: Scores, kept: Masks, amount: float) -> Masks:
    count = kept.kept - _number(amount, kept.kept)
    return plan(scores, Unstructured(), _Keep(count), within=kept)


def _number(amount: Any, left: int) -> int:
    if not isinstance(amount, Real):
        raise _WrongKind(f"amount={amount!r} is neither a fraction (float) nor a number of weights (int)")
    number: Any = amount
    whole = isinstance(number, Integral)
    if number < 0 or (number > left if whole else not number <= 1):
        raise BadSparsity(
            f"amount={amount} is neither a fraction in [0, 1] (float) nor at most the {left} that are left (int)"
        )
    return int(number) if whole else round(float(number) * left)


def _importance(module: nn.Module, name: str, given: Tensor | None) -> Tensor:
    tensor = tensor_of(module, name)
    if given is not None and given.shape != tensor.shape:
        raise BadScores(f"importance_scores have shape {list(given.shape)} and {name!r} has {list(tensor.shape)}")
    return tensor if given is None else given.detach().to(tensor.device)


def _drawn(module: nn.Module, name: str, generator: torch.Generator | None) -> Tensor:
    tensor = tensor_of(module, name)
    return torch.rand(tensor.shape, generator=generator).to(tensor.device)


def _dims_but(tensor: Tensor, dim: int) -> list[int]:
    if tensor.dim() < 2:
        raise BadPattern(
            f"a tensor of shape {list(tensor.shape)} has no channels; structured pruning needs two dimensions"
        )
    if not -tensor.dim() <= dim < tensor.dim():
        raise _NoSuchDim(f"dim={dim} is not a dimension of a tensor of shape {list(tensor.shape)}")
    return [other for other in range(tensor.dim()) if other != dim % tensor.dim()]
