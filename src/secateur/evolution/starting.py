"""What a search starts from: inputs as tensors, individuals that a criterion would choose, and a name for all that scores depend on."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.cyclegan.images import Images
from secateur.errors import NeedsTask
from secateur.evolution.genomes import Bits
from secateur.evolution.spaces import Space
from secateur.limits import limit_of
from secateur.names import allocation_of, criterion_of, standing
from secateur.narrowing.thinning import choose, members_of
from secateur.protocols import Criterion
from secateur.task import Task

__all__ = ["digest", "inputs_of", "split", "started"]


def inputs_of(source: Any, device: torch.device | None) -> Tensor:
    """Inputs of a generator, ``[n, ...]``: a tensor as it is, images of a folder in [-1, 1]."""
    if isinstance(source, str | Path):
        source = Images(source)
    found = source.plain() if isinstance(source, Images) else source
    if not isinstance(found, Tensor) or not len(found):
        raise NeedsTask(
            f"candidates are scored on inputs of the generator: pass a tensor [n, ...], Images or a folder, not {type(source).__name__}"
        )
    return found.to(device) if device is not None else found


def split(inputs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What candidates are scored on, and what they are tuned on: other inputs, where there are enough."""
    return inputs[:count], inputs[count:] if len(inputs) >= 2 * count else inputs


def started(
    space: Space, criteria: Iterable[str | Criterion], budgets: Sequence[str], example_inputs: Any, task: Task | None
) -> list[Bits]:
    """Individuals that criteria would choose: ranked over the whole network, and with the same part of every group."""
    found = []
    members = members_of(space.coupling, space.model)
    for name in criteria:
        criterion = standing(criterion_of(name))
        scores = criterion(space.model, members, task)
        for scope in ("global", "layer"):
            share = limit_of(budgets[0], scope) if budgets else allocation_of(scope, 0.5)
            masks, _ = choose(space.model, space.coupling, scores, share, example_inputs=example_inputs)
            found.append(space.bits(masks))
    return found


def digest(models: Iterable[nn.Module | None], tensors: Iterable[Tensor], said: str) -> str:
    """A word that changes with any weight, input or setting."""
    found = hashlib.sha256(said.encode())
    for model in models:
        for name, tensor in (model.state_dict() if model is not None else {}).items():
            found.update(name.encode())
            found.update(_raw(tensor))
    for tensor in tensors:
        found.update(_raw(tensor))
    return found.hexdigest()[:32]


def _raw(tensor: Any) -> bytes:
    if not isinstance(tensor, Tensor) or not tensor.numel():
        return repr(tensor).encode()
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
