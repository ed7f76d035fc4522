"""``secateur groups MODEL``: which channels leave together, and which may not and why."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.files import refuse_foreign
from secateur.cli.options import Debug, Force, Inputs, Json, Target
from secateur.cli.screen import note, print_json, show, working
from secateur.coupling import couple
from secateur.coupling.census import groups_of, held_of
from secateur.recipe import example_inputs_of, trained_model
from secateur.reporting.groups import render_groups, write

__all__ = ["command"]


def command(
    target: Target,
    *,
    inputs: Inputs = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Layers whose channels stay; repeat for several.")] = None,
    heads: Annotated[str, typer.Option(help="How attention heads leave: whole, or inside.")] = "whole",
    norms: Annotated[str, typer.Option(help="The width that layer norms run over: hold, or shrink.")] = "hold",
    page: Annotated[Path | None, typer.Option("--output", "-o", help="Write an HTML page with a picture here.")] = None,
    force: Force = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Show which channels of a model leave together; it is run once on --input."""
    if not inputs:
        raise typer.BadParameter("the model is run once to see what is coupled: pass --input, e.g. --input 1x3x224x224")
    if heads not in ("whole", "inside"):
        raise typer.BadParameter(f"--heads {heads!r} is neither 'whole' nor 'inside'")
    if norms not in ("hold", "shrink"):
        raise typer.BadParameter(f"--norms {norms!r} is neither 'hold' nor 'shrink'")
    refuse_foreign([page], force=force)
    model = trained_model(target)
    with working("running the model once"):
        coupling = couple(model, example_inputs_of(inputs), ignore=ignore or (), heads=heads, norms=norms)
    name, found, held = type(model).__name__, groups_of(coupling, model), held_of(coupling, model)
    if page:
        write(name, found, page, held=held, layers=[path for path, _ in model.named_modules()])
        note(f"page: {page}")
    if as_json:
        print_json("groups", {"groups": [asdict(one) for one in found], "held": [asdict(one) for one in held]})
    elif not page:
        show(render_groups(name, found, held))
