"""The zoo that narrowing must not break: every structural trick, with fresh inputs of any batch size.

Also what the tests of narrowing do with it: draw masks for random units, and compare outputs.
"""

import copy
from typing import Any

import torch
from tests.coupling.tricks_of_images import IMAGES, FromLatent
from tests.coupling.tricks_of_sequences import SEQUENCES, WORDS, ManyEnds
from torch import Tensor, nn

import secateur as sc
from secateur.coupling.running import run, tensors_of

__all__ = ["NAMES", "difference", "draw_masks", "inputs", "make", "masked"]

_OTHERS = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 3, 3)), (4, 9)),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 6, 2), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 2, 1)),
        (2, 5, 5, 5),
    ),
    "from_latent": (FromLatent, (6,)),
    "transposed1d": (lambda: nn.Sequential(nn.ConvTranspose1d(4, 8, 3), nn.ELU(), nn.Conv1d(8, 3, 3)), (4, 9)),
}

NAMES = [*IMAGES, *SEQUENCES, *WORDS, *_OTHERS, "many_ends"]


def make(name: str, seed: int = 0) -> nn.Module:
    """A fresh network with weights, biases and statistics that are all away from their defaults, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ({**IMAGES, **SEQUENCES, **WORDS, "many_ends": ManyEnds} | {n: m for n, (m, _) in _OTHERS.items()})[
            name
        ]()
        for module in model.modules():
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if tensor.dim() == 1 and tensor.is_floating_point():
                    low = 0.5 if key in ("running_var", "weight") else -0.5
                    tensor.data.uniform_(low, 1.0)
    return model.eval()


def inputs(name: str, batch: int = 2, seed: int = 0) -> Any:
    """Fresh inputs."""
    generator = torch.Generator().manual_seed(seed)
    if name in WORDS:
        return torch.randint(0, 12, (batch, 5), generator=generator)
    if name == "many_ends":
        return {"image": torch.randn(batch, 6, generator=generator), "text": torch.randn(batch, 4, generator=generator)}
    shape = (3, 8, 8) if name in IMAGES else _OTHERS[name][1] if name in _OTHERS else (5, 6)
    return torch.randn(batch, *shape, generator=generator)


def draw_masks(model: nn.Module, groups: tuple[Any, ...], fraction: float, seed: int) -> sc.Masks:
    """Mask a random ``fraction`` of the units of every group, in all of its places; one unit stays at least."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    masks = {
        n: torch.ones_like(parameters[n], dtype=torch.bool) for g in groups for n, _ in g.places if n in parameters
    }
    for group in groups:
        out = torch.randperm(group.units, generator=generator)[: min(round(fraction * group.units), group.units - 1)]
        for (name, dim), index in group.places.items():
            if name in masks and (name, dim) not in group.scaled:
                masks[name].index_fill_(dim, index[out].reshape(-1), False)
    return sc.Masks(masks)


def masked(model: nn.Module, masks: sc.Masks) -> nn.Module:
    """A copy with the weights zeroed."""
    return masks.apply_(copy.deepcopy(model))


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, example: Any) -> float:
    """The largest difference of any output relative to its largest value; infinite where shapes differ."""
    worst = 0.0
    pairs: list[tuple[Tensor, Tensor]] = list(
        zip(tensors_of(run(a, example)), tensors_of(run(b, example)), strict=True)
    )
    for x, y in pairs:
        if x.shape != y.shape:
            return float("inf")
        worst = max(worst, float((x - y).abs().max() / x.abs().max().clamp_min(1e-6)))
    return worst
