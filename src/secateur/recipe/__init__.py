"""Recipes: pruning without writing Python. A TOML file with hyper-parameters, and dotted paths to your model and data.

load     read a file, check everything, report every mistake at once
Recipe   the values; ``Recipe.from_toml(recipe.to_toml()) == recipe``
run      model in, ``Pruned`` out
"""

from secateur.recipe.inputs import example_inputs_of
from secateur.recipe.reading import load, parse
from secateur.recipe.running import run, trained_model
from secateur.recipe.schema import Recipe

__all__ = ["Recipe", "example_inputs_of", "load", "parse", "run", "trained_model"]
