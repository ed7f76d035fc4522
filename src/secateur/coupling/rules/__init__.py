"""One short rule for each operation that mixes elements; a file a family. Importing this registers them."""

from secateur.coupling.rules import (
    attention,
    constants,
    contractions,
    convolutions,
    lookups,
    moves,
    norms,
    packing,
    pointwise,
    reductions,
    scatters,
    spatial,
)

__all__ = [
    "attention",
    "constants",
    "contractions",
    "convolutions",
    "lookups",
    "moves",
    "norms",
    "packing",
    "pointwise",
    "reductions",
    "scatters",
    "spatial",
]
