"""How good generated pictures are, measured without a download: Frechet distance, KID, perceptual and cycle errors."""

from secateur.fidelity.distances import frechet, kid
from secateur.fidelity.features import Features, lite0
from secateur.fidelity.translation import cycle_error, discriminator_score, made_by, translation

__all__ = ["Features", "cycle_error", "discriminator_score", "frechet", "kid", "lite0", "made_by", "translation"]
