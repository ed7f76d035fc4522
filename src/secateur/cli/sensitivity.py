"""``secateur sensitivity MODEL``: quality against sparsity, layer by layer."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.files import refuse_foreign
from secateur.cli.options import Debug, Evaluate, Force, Inputs, Json, Target, Weights
from secateur.cli.screen import note, print_json, progress_bar, show, stamped
from secateur.names import dotted
from secateur.recipe import example_inputs_of, trained_model
from secateur.reporting.terminal import render_sensitivity
from secateur.reporting.writing import write_text
from secateur.sensitivity import SPARSITIES, Sensitivity, sensitivity
from secateur.task import Task

__all__ = ["command"]


def command(
    target: Target,
    *,
    evaluate: Evaluate = None,
    batches: Annotated[str | None, typer.Option(metavar="PATH", help="Dotted path to batches; with --loss.")] = None,
    loss: Annotated[
        str | None, typer.Option(metavar="PATH", help="Dotted path to loss(model, batch): finer than quality.")
    ] = None,
    sparsities: Annotated[
        list[float] | None, typer.Option("--sparsity", "-s", help="Fraction removed; repeat for several.")
    ] = None,
    granularity: Annotated[str, typer.Option(help="What leaves together.")] = "unstructured",
    method: Annotated[str, typer.Option(help="The criterion.")] = "magnitude",
    ignore: Annotated[list[str] | None, typer.Option(help="Layers to leave out; repeat for several.")] = None,
    inputs: Inputs = None,
    weights: Weights = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the curves: .svg, .png, .pdf or .json.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Prune each layer alone and score the model: which layers bear what? The score is --evaluate, or the mean --loss."""
    if granularity == "channel" and not inputs:
        raise typer.BadParameter("channels are found by running the model once: pass --input, e.g. --input 1x3x224x224")
    refuse_foreign([output], force=force)
    task = _task(batches=batches, loss=loss, evaluate=evaluate)
    model = trained_model(target, str(weights) if weights else None)
    with progress_bar() as tick:
        found = sensitivity(
            model,
            task,
            sparsities=sparsities or SPARSITIES,
            granularity=granularity,
            method=method,
            ignore=ignore or (),
            metric="evaluate" if evaluate else "loss",
            example_inputs=example_inputs_of(inputs or ()),
            on_progress=lambda done, total, layer: tick(layer, done, total),
        )
    if output:
        _keep(found, output)
    if as_json:
        print_json("sensitivity", {"sensitivity": found.to_dict()})
    else:
        show(render_sensitivity(found))


def _task(*, evaluate: str | None, loss: str | None, **more: str | None) -> Task:
    """What is measured, found by dotted paths."""
    if evaluate is None and loss is None:
        raise typer.BadParameter("say what to measure: --evaluate mypkg.data:accuracy, or --loss and --batches")
    named = {"loss": loss, "evaluate": evaluate} | more
    return Task(**{key: dotted(path) for key, path in named.items() if path})


def _keep(found: Sensitivity, output: Path) -> None:
    if output.suffix == ".json":
        values: dict[str, Any] = stamped("sensitivity", {"sensitivity": found.to_dict()})
        write_text(output, json.dumps(values, indent=2, allow_nan=False) + "\n")
    else:
        found.plot(output)
    note(f"curves: {output}")
