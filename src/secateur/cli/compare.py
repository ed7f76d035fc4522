"""``secateur compare BEFORE AFTER``: a receipt for two models, however they came about."""

from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from secateur.cli.files import refuse_foreign
from secateur.cli.options import Debug, Evaluate, Force, Inputs, Json, Threads, Weights
from secateur.cli.screen import note, print_json, show, working
from secateur.names import dotted
from secateur.profiling.profile import compare
from secateur.recipe import example_inputs_of, trained_model
from secateur.reporting.terminal import render
from secateur.task import Task

__all__ = ["command"]


def command(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="Dotted path to a model.")],
    after: Annotated[
        str, typer.Argument(metavar="AFTER", help="Another dotted path, or a file of weights for BEFORE's class.")
    ],
    *,
    inputs: Inputs = None,
    weights: Weights = None,
    evaluate: Evaluate = None,
    threads: Threads = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the receipt as a page, too.")] = None,
    force: Force = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Compare two models: parameters, bytes, MACs, latency, quality. --weights are those of BEFORE."""
    refuse_foreign([html], force=force)
    task = Task(evaluate=dotted(evaluate)) if evaluate else None
    first, second = trained_model(before, str(weights) if weights else None), _second(before, after)
    with working("measuring"):
        report = compare(
            first,
            second,
            example_inputs_of(inputs or ()),
            task=task,
            method=f"{before} against {after}",
            threads=threads,
        )
    if html:
        from secateur.reporting.html import write

        write(report, html)
        note(f"page: {html}")
    if as_json:
        print_json("compare", {"report": report.to_dict()})
    else:
        show(render(report))


def _second(before: str, after: str) -> nn.Module:
    return trained_model(before, after) if Path(after).is_file() else trained_model(after)
