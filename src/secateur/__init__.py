"""Secateur: prune PyTorch models and make the pruning pay."""

from secateur import errors, export, methods, runtime
from secateur.coupling import couple
from secateur.facts import LayerFacts
from secateur.masks import Masks
from secateur.narrowing.narrow import narrow
from secateur.on_disk import prune_on_disk
from secateur.planning import plan
from secateur.profiling.profile import compare, profile
from secateur.pruning import prune
from secateur.report import Latency, LayerProfile, Profile, Pruned, Report
from secateur.runtime import compile_model as compile  # noqa: A004 - `sc.compile`, beside `sc.prune` and `sc.save`
from secateur.schedules.constant import Constant
from secateur.schedules.cyclic import Cyclic
from secateur.schedules.linear import Linear
from secateur.schedules.polynomial import PolynomialDecay
from secateur.scores import Scores
from secateur.sensitivity import Sensitivity, sensitivity
from secateur.storage import load, save
from secateur.structure import Structure
from secateur.task import Task
from secateur.training.distilling import distillation
from secateur.training.holding import Hold, hold
from secateur.training.recalibration import recalibrate_

__version__ = "0.1.0"

__all__ = [
    "Constant",
    "Cyclic",
    "Hold",
    "Latency",
    "LayerFacts",
    "LayerProfile",
    "Linear",
    "Masks",
    "PolynomialDecay",
    "Profile",
    "Pruned",
    "Report",
    "Scores",
    "Sensitivity",
    "Structure",
    "Task",
    "compare",
    "compile",
    "couple",
    "distillation",
    "errors",
    "export",
    "hold",
    "load",
    "methods",
    "narrow",
    "plan",
    "profile",
    "prune",
    "prune_on_disk",
    "recalibrate_",
    "runtime",
    "save",
    "sensitivity",
]
