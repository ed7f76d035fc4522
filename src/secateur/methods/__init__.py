"""Methods: one paper (or practice) a file. ``sc.methods.Gradual`` is ``methods/gradual.py``."""

from secateur.methods.channel import Channel
from secateur.methods.data_free import DataFree
from secateur.methods.gradual import Gradual
from secateur.methods.iterative import Iterative
from secateur.methods.one_shot import OneShot

__all__ = ["Channel", "DataFree", "Gradual", "Iterative", "OneShot"]
