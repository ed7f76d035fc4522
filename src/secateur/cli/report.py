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
from secateur.reporting.terminal import render
from secateur.storage import inspect

__all__ = ["command"]


def command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON from --json or [output] report, or a model that Secateur saved."),
    ],
    page: Annotated[Path | None, typer.Option("--output", "-o", help="Write an HTML page here.")] = None,
    force: Force = False,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Show a receipt again, or write it as one self-contained HTML page."""
    refuse_foreign([page], force=force)
    report = Report.from_dict(_values(file))
    if page:
        from secateur.reporting.html import write

        write(report, page)
        note(f"page: {page}")
    if as_json:
        print_json("report", {"report": report.to_dict()})
    elif not page:
        show(render(report))


def _values(file: Path) -> dict[str, Any]:
    values = _of_model_file(file) if file.suffix == ".safetensors" else _of_json(file)
    inner = values.get("report", values)
    if not isinstance(inner, dict) or "before" not in inner:
        raise BadFile(f"{str(file)!r} holds no receipt; write one with `secateur prune --json` or [output] report")
    return inner


def _of_model_file(file: Path) -> dict[str, Any]:
    return inspect(file).report or {}


def _of_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFile(f"cannot read {str(file)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{str(file)!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadFile(f"{str(file)!r} holds no receipt, but a JSON {type(values).__name__}")
    return values
