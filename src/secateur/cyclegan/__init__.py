"""CycleGAN (Zhu et al. 2017): its networks, its losses and a trainer, for image folders without pairs."""

from secateur.cyclegan.averaging import Average
from secateur.cyclegan.discriminators import PatchDiscriminator
from secateur.cyclegan.generators import ResidualBlock, ResNetGenerator, UNetGenerator, initialise_
from secateur.cyclegan.images import Images, domains
from secateur.cyclegan.logging import Log, samples
from secateur.cyclegan.losses import Networks, Weights, discriminator_loss, generator_losses
from secateur.cyclegan.pool import ImagePool
from secateur.cyclegan.training import Run, Training
from secateur.pictures import from_bytes, to_bytes

__all__ = [
    "Average",
    "ImagePool",
    "Images",
    "Log",
    "Networks",
    "PatchDiscriminator",
    "ResNetGenerator",
    "ResidualBlock",
    "Run",
    "Training",
    "UNetGenerator",
    "Weights",
    "discriminator_loss",
    "domains",
    "from_bytes",
    "generator_losses",
    "initialise_",
    "samples",
    "to_bytes",
]
