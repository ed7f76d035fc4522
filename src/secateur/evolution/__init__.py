"""Evolution of which channels live: genomes over coupled groups, populations, and who evaluates them."""

from secateur.evolution.executors import InProcess, Processes
from secateur.evolution.genomes import Genomes
from secateur.evolution.on_ray import Ray
from secateur.evolution.scoring import Arena, Job, Terms, Tuning

__all__ = ["Arena", "Genomes", "InProcess", "Job", "Processes", "Ray", "Terms", "Tuning"]
