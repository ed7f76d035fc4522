"""How well a pair of generators translates: distances of features, errors of the cycle, and what the discriminators say."""

from typing import Any

import torch
from torch import Tensor, nn

from secateur.fidelity.distances import frechet, kid
from secateur.fidelity.features import Features
from secateur.gradients import evaluating

__all__ = ["cycle_error", "discriminator_score", "made_by", "translation"]


def made_by(generator: nn.Module, inputs: Tensor, batch: int = 50) -> Tensor:
    """What a generator makes of its inputs, in eval mode."""
    with torch.no_grad(), evaluating(generator):
        return torch.cat([generator(part) for part in torch.split(inputs, batch)])


def cycle_error(there: nn.Module, back: nn.Module, inputs: Tensor) -> float:
    """The mean absolute difference of ``back(there(x))`` and ``x``, of which images span 2."""
    return float((made_by(back, made_by(there, inputs)) - inputs).abs().mean())


def discriminator_score(discriminator: nn.Module, images: Tensor) -> float:
    """What a least-squares discriminator says on average: near 1 for images that it takes for real, near 0 for fakes."""
    return float(made_by(discriminator, images).mean())


def translation(
    generators: tuple[nn.Module, nn.Module],
    a: Tensor,
    b: Tensor,
    *,
    features: Features | None = None,
    discriminators: tuple[nn.Module, nn.Module] | None = None,
    dense: tuple[nn.Module, nn.Module] | None = None,
    real: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """All measures of a pair, in both directions (``"ab"``: what was made of A, against B).

    Args:
        generators: ``(g_ab, g_ba)``.
        a: images of A, ``[n, 3, h, w]`` in [-1, 1].
        b: of B.
        features: for the distances; None leaves those out.
        discriminators: ``(d_a, d_b)``, for their scores.
        real: ``features(a), features(b)``, where they are known already.
        dense: generators whose outputs are compared with, image by image.
    """
    found: dict[str, Any] = {}
    for name, k, source, target in (("ab", 0, a, b), ("ba", 1, b, a)):
        made = made_by(generators[k], source)
        here: dict[str, float] = {"cycle": float((made_by(generators[1 - k], made) - source).abs().mean())}
        if features is not None:
            seen, goal = features(made), features(target) if real is None else real[1 - k]
            here |= {"frechet": frechet(seen, goal), "kid": kid(seen, goal)}
        if discriminators is not None:
            here["discriminator"] = discriminator_score(discriminators[1 - k], made)
        if dense is not None:
            taught = made_by(dense[k], source)
            here["off_dense"] = float((made - taught).abs().mean())
            if features is not None:
                here["perceptual"] = features.perceptual(made, taught)
        found[name] = here
    return found
