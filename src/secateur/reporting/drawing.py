"""Sensitivity curves as a file of their own."""

import os
import tempfile
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from secateur.reporting.plots import draw_curves, silent_about_letters
from secateur.sensitivity import Sensitivity

__all__ = ["save_curves"]


def save_curves(found: Sensitivity, path: str | Path) -> Path:
    """Draw ``found`` to ``path`` (svg, png, pdf, by its ending); a crash in the middle leaves what was there before."""
    goal = Path(path)
    handle, name = tempfile.mkstemp(dir=goal.parent, prefix=f".{goal.stem}.", suffix=goal.suffix)
    os.close(handle)
    try:
        with rc_context({"text.parse_math": False}), silent_about_letters():
            _figure(found).savefig(name, dpi=150)
        Path(name).chmod(0o644)
        Path(name).replace(goal)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return goal


def _figure(found: Sensitivity) -> Figure:
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    draw_curves(axes, found.curves, found.dense, found.label)
    axes.set_title(f"one layer pruned at a time ({found.method}, {found.granularity})", loc="left", fontsize=10)
    return figure
