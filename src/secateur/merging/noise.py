"""Noise in place of what a layer gives, to see what becomes of it, and maps of activations by units.

Noise has sizes from exp(-3) to exp(3) and both signs, so that no bend of a function between goes unseen.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.gates import by_channel

__all__ = ["Change", "fields_like", "noise_from", "noise_like", "units_of"]

_SPREAD = 3.0

Change = Callable[[Tensor], Tensor]  # of a map that has its channels first


@contextmanager
def noise_from(module: nn.Module, change: Change) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Let ``module`` give noise, the same every time but changed; what it gave is gathered."""
    generator, given = torch.Generator().manual_seed(0), []

    def replaced(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        sizes = torch.rand(out.shape, generator=generator, dtype=torch.float64).mul_(2 * _SPREAD).sub_(_SPREAD).exp_()
        noise = noise_like(out, generator).mul_(sizes.to(out))
        axis = _axis(module, out)
        found = change(noise.movedim(axis, 0)).movedim(0, axis).contiguous()
        given.append((module, found.clone()))
        return found

    handle = module.register_forward_hook(replaced)
    try:
        yield given
    finally:
        handle.remove()


def noise_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of the shape, type and device of a tensor."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def fields_like(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise as smooth as images are, of mean square 1 on each map ``[channels, batch, ...]``: amplitudes fall with 1 / frequency."""
    places = tuple(range(2, maps.dim()))
    noise = noise_like(maps, generator).double()
    if places:
        steps = [torch.fft.fftfreq(maps.shape[d], dtype=torch.float64) for d in places]
        squares = sum(f.square() for f in torch.meshgrid(*steps, indexing="ij"))
        lowest = 1 / max(maps.shape[2:])  # the mean is as strong as the longest wave
        frequencies = torch.as_tensor(squares).sqrt().clamp_(min=lowest).to(noise.device)
        noise = torch.fft.ifftn(torch.fft.fftn(noise, dim=places) / frequencies, dim=places).real
        noise = noise / noise.square().mean(places, keepdim=True).sqrt().clamp_(min=1e-30)
    return noise.to(maps)


def _axis(module: nn.Module, flow: Tensor) -> int:
    """Where a layer's input and output have their channels."""
    if isinstance(module, _BatchNorm):
        return 1
    if isinstance(module, nn.modules.conv._ConvNd):
        return 1 if flow.dim() == module.weight.dim() else 0
    return -1


def units_of(seen: Sequence[tuple[nn.Module, Tensor]], index: Tensor) -> Tensor:
    """Maps as ``[units, elements]``."""
    flat = [
        (x.transpose(0, 1) if isinstance(module, _BatchNorm) else by_channel(module, x)).flatten(1)
        for module, x in seen
    ]
    return torch.cat([channels[index].flatten(1) for channels in flat], 1).cpu()
