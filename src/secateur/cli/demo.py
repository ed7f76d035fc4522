"""``secateur demo``: the whole tool on scikit-learn's digits, in under a minute."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from secateur.cli.options import Debug, Json
from secateur.cli.screen import print_json, progress_bar, show
from secateur.demo import Demo, run_demo
from secateur.reporting.terminal import render, render_totals

__all__ = ["command"]


def command(
    *,
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where the model and the page go.")] = Path(
        "demo-output"
    ),
    sparsity: Annotated[float, typer.Option(help="The fraction removed.")] = 0.9,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the digits, dense and again gradual.")] = 12,
    seed: Annotated[int, typer.Option(help="For weights and shuffling.")] = 0,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Train a small convnet on scikit-learn's digits, prune it both ways, save, load, measure, write a page."""
    with progress_bar() as tick:
        demo = run_demo(folder, sparsity=sparsity, epochs=epochs, seed=seed, say=tick)
    if as_json:
        print_json("demo", _values(demo))
        return
    show("One-shot, no retraining: accuracy on 450 test digits, in percent")
    show(_table(demo))
    show(f"60% of the channels taken out for real, {demo.narrow.report.before.inputs}; nothing was trained after:")
    show(render_totals(demo.narrow.report))
    show(f"Pruned while training, {sparsity:.0%} removed. The receipt:\n")
    show(render(demo.gradual.report))
    show("\n".join(_facts(demo)))


def _table(demo: Demo) -> Table:
    table = Table(box=box.SIMPLE)
    for column in ("removed", "smallest weights", "random weights (control)"):
        table.add_column(column, justify="right")
    table.add_row("nothing", f"{demo.dense_score:.1f}", f"{demo.dense_score:.1f}")
    for row in demo.rows:
        table.add_row(f"{row.sparsity:.0%}", f"{row.magnitude:.1f}", f"{row.random:.1f}")
    return table


def _facts(demo: Demo) -> list[str]:
    dense, packed = demo.gradual.report.before.dense_bytes, demo.model_file.stat().st_size
    smaller = f", {dense / packed:.1f} times smaller than the dense file" if dense else ""
    return [
        "",
        f"zeros held through training     {_yes(demo.zeros_held)}",
        f"file loads back bit for bit     {_yes(demo.loaded_equal)}",
        f"model   {demo.model_file}  ({packed:,} bytes{smaller})",
        f"page    {demo.page}",
        f"done in {demo.seconds:.0f} s",
    ]


def _yes(fact: bool) -> str:
    return "yes" if fact else "NO"


def _values(demo: Demo) -> dict[str, object]:
    return {
        "dense_score": demo.dense_score,
        "one_shot": [{"sparsity": r.sparsity, "magnitude": r.magnitude, "random": r.random} for r in demo.rows],
        "narrow": demo.narrow.report.to_dict(),
        "report": demo.gradual.report.to_dict(),
        "model": str(demo.model_file),
        "page": str(demo.page),
        "zeros_held": demo.zeros_held,
        "loaded_equal": demo.loaded_equal,
        "seconds": demo.seconds,
    }
