"""What all networks share: a case is a level, a method and the work behind them; a judge gives a pruned network its number."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import secateur as sc

Case = tuple[str, str, Callable[[], sc.Pruned]]
Judge = Callable[[nn.Module], float]
Bench = tuple[nn.Module, Judge, Iterator[Case]]

LAYERWISE = {
    "magnitude": {"solver": "magnitude"},
    "random": {"solver": "random"},
    "Wanda": {"solver": "activation", "order": "blocks"},
    "SparseGPT": {"solver": "columns", "refit": False, "order": "blocks"},
    "columns": {"solver": "columns"},
    "columns, held out": {"solver": "columns", "damping": "held_out"},
    "columns, held out, layers by errors": {"solver": "columns", "damping": "held_out", "scope": "global"},
    "columns, dense targets, held out": {"solver": "columns", "targets": "dense", "damping": "held_out"},
    "split, dense targets, held out": {"solver": "split", "targets": "dense", "damping": "held_out"},
    "split, dense targets, held out, layers by errors": {
        "solver": "split",
        "targets": "dense",
        "damping": "held_out",
        "scope": "global",
    },
    "split": {"solver": "split"},
    "split, dense targets": {"solver": "split", "targets": "dense"},
    "split, dense targets, tuned": {"solver": "split", "targets": "dense", "order": "blocks", "tune": 4},
}
LEVELS = (("unstructured", 0.5), ("2:4", None), ("unstructured", 0.6), ("unstructured", 0.7), ("4:8", None))


def transformer_cases(
    model: nn.Module,
    task: sc.Task,
    ignore: list[str],
    folder: Path | None,
    *,
    unfit: dict[str, list[str]] | None = None,
) -> Iterator[Case]:
    """All linear layers of the blocks, at the same sparsity in each unless it goes by errors; N:M is the same everywhere.

    ``unfit``: what else is left alone, by granularity: layers whose inputs are no multiple of m.
    """
    for granularity, s in LEVELS:
        level = f"{100 * s:g} %" if s else granularity
        much: dict[str, Any] = {"sparsity": s, "scope": "layer"} if s else {}
        alone = [*ignore, *(unfit or {}).get(granularity, [])]
        yield level, "magnitude", partial(sc.prune, model, "magnitude", granularity=granularity, ignore=alone, **much)
        for name, how in LAYERWISE.items():
            if name == "magnitude" or (not s and "scope" in how):
                continue
            kind = "row" if "Wanda" in name and s else granularity
            shared: dict[str, Any] = {"granularity": kind, "ignore": alone, "norms": False, "task": task} | much
            kept = {"folder": str(folder / f"{level} {name}".replace(" ", "_").replace(":", "of"))} if folder else {}
            yield level, name, partial(sc.prune, model, "layer_obs", **(shared | how | kept))
