"""``secateur report FILE``: a receipt that was kept as JSON or inside a model file, shown again or made a page."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.files import refuse_foreign
from secateur.cli.options import Debug, Force, Json
from secateur.cli.screen import note, print_json, show
from secateur.errors import BadFile
from secateur.report import Report
from secateur.storage import inspect

__all__ = ["command"]


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON from --json or [output] report, or a model from `secateur prune`.")],
    page: Annotated[Path | None, typer.Option("--output", "-o", help="Write the page here, too.")] = None,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a receipt again, or write it as one self-contained HTML page."""
    refuse_foreign([page], force=force)
    values = _values(file)
    report = _report(values, file)
    if page:
        from secateur.reporting.html import write

        write(report, page)
        note(f"page: {page}")
    if as_json:
        print_json("report", {"report": report.to_dict()})
    elif not page:
        show(str(report))
