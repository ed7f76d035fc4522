"""The losses of CycleGAN (Zhu et al. 2017).

    generators       (D_B(G(a)) - 1)^2 + (D_A(F(b)) - 1)^2                            least squares (Mao et al. 2017)
                     + lambda_cycle ( |F(G(a)) - a| + |G(F(b)) - b| )                 eq. 2, mean absolute difference
                     + lambda_cycle lambda_identity ( |G(b) - b| + |F(a) - a| )       section 5.2
    discriminators   1/2 [ (D(real) - 1)^2 + D(fake)^2 ]                              section 4

With teachers, the generators that a smaller pair came from:   + lambda_teacher ( |G(a) - G_teacher(a)| + |F(b) - F_teacher(b)| ).
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

__all__ = ["Networks", "Weights", "discriminator_loss", "generator_losses", "towards"]


class Networks(NamedTuple):
    """A CycleGAN: ``g_ab`` makes B of A, ``g_ba`` A of B; ``d_a`` and ``d_b`` judge images of A and of B."""

    g_ab: nn.Module
    g_ba: nn.Module
    d_a: nn.Module
    d_b: nn.Module


@final
@dataclass(frozen=True, kw_only=True)
class Weights:
    """How much each term counts.

    Args:
        cycle: lambda_cycle.
        identity: lambda_identity, relative to the cycle; 0 leaves the term out and saves a third of the work.
        teacher: lambda_teacher.
    """

    cycle: float = 10.0
    identity: float = 0.5
    teacher: float = 10.0


def towards(scores: Tensor, target: float) -> Tensor:
    """The mean squared distance of a discriminator's scores from ``target``."""
    return (scores - target).square().mean()


def discriminator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Half of the squared distances from 1 for real images and from 0 for fakes; ``[batch, channels, h, w]`` each."""
    on_real, on_fake = discriminator(torch.cat([real, fake.detach()])).split([len(real), len(fake)])
    return (towards(on_real, 1.0) + towards(on_fake, 0.0)) / 2


def generator_losses(
    networks: Networks, a: Tensor, b: Tensor, weights: Weights, teachers: tuple[nn.Module, nn.Module] | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The weighted terms by name, whose sum is minimised, and the fakes of B and of A.

    Args:
        networks: the CycleGAN.
        a: images of A, ``[batch, channels, h, w]`` in [-1, 1].
        b: of B.
        weights: of the terms.
        teachers: the generators that outputs shall resemble.
    """
    g, f = networks.g_ab, networks.g_ba
    if weights.identity:
        fake_b, same_b = g(torch.cat([a, b])).split([len(a), len(b)])  # one pass of two batches is faster than two
        fake_a, same_a = f(torch.cat([b, a])).split([len(b), len(a)])
    else:
        fake_b, fake_a = g(a), f(b)
    terms = {
        "adversarial": towards(networks.d_b(fake_b), 1.0) + towards(networks.d_a(fake_a), 1.0),
        "cycle": weights.cycle * (l1_loss(f(fake_b), a) + l1_loss(g(fake_a), b)),
    }
    if weights.identity:
        terms["identity"] = weights.cycle * weights.identity * (l1_loss(same_b, b) + l1_loss(same_a, a))
    if teachers is not None and weights.teacher:
        with torch.no_grad():
            taught_b, taught_a = teachers[0](a), teachers[1](b)
        terms["teacher"] = weights.teacher * (l1_loss(fake_b, taught_b) + l1_loss(fake_a, taught_a))
    return terms, fake_b, fake_a
