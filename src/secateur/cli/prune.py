"""``secateur prune RECIPE.toml``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.exits import Exit
from secateur.cli.files import refuse_foreign
from secateur.cli.options import Debug, Force, Json
from secateur.cli.screen import finite, note, print_json, progress_bar, show, stamped
from secateur.recipe import Recipe, load, run
from secateur.report import Pruned
from secateur.reporting.terminal import render
from secateur.reporting.writing import write_text

__all__ = ["command"]


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="See docs/recipes.md.")],
    check: Annotated[bool, typer.Option("--check", help="Only validate the recipe; nothing runs.")] = False,
    force: Force = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Prune a model as a recipe says, print the receipt, write what [output] names."""
    plan = load(recipe)
    refuse_foreign(_outputs(plan).values(), force=force)
    if check:
        if as_json:
            print_json("prune", {"recipe": str(recipe), "valid": True})
        else:
            show(f"{recipe}: a valid recipe")
        return
    with progress_bar() as tick:
        pruned = run(plan, tick)
    written = _write(pruned, plan)
    values = {
        "report": pruned.report.to_dict(),
        "kept": pruned.masks.kept,
        "total": pruned.masks.total,
        "written": written,
    }
    if as_json:
        print_json("prune", values)
    else:
        show(render(pruned.report))
        for what, path in written.items():
            note(f"{what}: {path}")
    if pruned.masks.kept == pruned.masks.total:
        note("nothing was removed: the sparsity is 0, or it rounds to zero units in every layer")
        raise typer.Exit(Exit.NOTHING_REMOVED)


def _outputs(plan: Recipe) -> dict[str, Path]:
    return {name: Path(path) for name, path in plan.output.model_dump(exclude_none=True).items()}


def _write(pruned: Pruned, plan: Recipe) -> Mapping[str, str]:
    from secateur.reporting import html
    from secateur.storage import save

    paths = _outputs(plan)
    if "model" in paths:
        save(pruned, paths["model"])
    if "report" in paths:
        values: dict[str, Any] = stamped("prune", {"recipe": plan.to_toml(), "report": pruned.report.to_dict()})
        write_text(paths["report"], json.dumps(finite(values), indent=2, allow_nan=False) + "\n")
    if "html" in paths:
        html.write(pruned.report, paths["html"])
    return {name: str(path) for name, path in paths.items()}
