"""Methods: one paper (or practice) a file. ``sc.methods.Gradual`` is ``methods/gradual.py``."""

from secateur.methods.admm import ADMM
from secateur.methods.alps import ALPS
from secateur.methods.block_fisher import BlockFisher
from secateur.methods.channel import Channel
from secateur.methods.co_evolution import CoEvolution
from secateur.methods.data_free import DataFree
from secateur.methods.ecc import ECC
from secateur.methods.energy_constrained import EnergyConstrained
from secateur.methods.gdp import GDP
from secateur.methods.gradual import Gradual
from secateur.methods.iterative import Iterative
from secateur.methods.layer_obs import LayerObs
from secateur.methods.obs import Obs
from secateur.methods.one_shot import OneShot
from secateur.methods.slimming import Slimming
from secateur.methods.stepwise import Stepwise

__all__ = [
    "ADMM",
    "ALPS",
    "ECC",
    "GDP",
    "BlockFisher",
    "Channel",
    "CoEvolution",
    "DataFree",
    "EnergyConstrained",
    "Gradual",
    "Iterative",
    "LayerObs",
    "Obs",
    "OneShot",
    "Slimming",
    "Stepwise",
]
