"""Methods: one paper (or practice) a file. ``sc.methods.Gradual`` is ``methods/gradual.py``."""

from secateur.methods.channel import Channel
from secateur.methods.co_evolution import CoEvolution
from secateur.methods.data_free import DataFree
from secateur.methods.gdp import GDP
from secateur.methods.gradual import Gradual
from secateur.methods.iterative import Iterative
from secateur.methods.one_shot import OneShot
from secateur.methods.slimming import Slimming
from secateur.methods.stepwise import Stepwise

__all__ = ["GDP", "Channel", "CoEvolution", "DataFree", "Gradual", "Iterative", "OneShot", "Slimming", "Stepwise"]
