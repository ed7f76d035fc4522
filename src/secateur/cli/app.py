"""The commands put together, and the one place where errors become a line and an exit code."""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from secateur import __version__
from secateur.cli import compare, demo, groups, inspect, profile, prune, report, sensitivity
from secateur.cli.exits import Exit
from secateur.cli.screen import complain
from secateur.errors import BadRecipe, SecateurError

__all__ = ["app", "main"]

_USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[1]  # typer's own click or the real one, by version
_COMMANDS: Final[dict[str, tuple[Callable[..., None], str]]] = {
    "prune": (prune.command, "Prune a model as a recipe says."),
    "profile": (profile.command, "Count what a model costs."),
    "compare": (compare.command, "A receipt for two models."),
    "sensitivity": (sensitivity.command, "Quality against sparsity, layer by layer."),
    "groups": (groups.command, "Which channels leave together."),
    "inspect": (inspect.command, "What a model file holds."),
    "report": (report.command, "A kept receipt again, or as a page."),
    "demo": (demo.command, "All of it on scikit-learn's digits."),
}

app = typer.Typer(
    name="secateur",
    help="Prune PyTorch models and make the pruning pay.",
    epilog="Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in Exit) + ".",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, (_command, _summary) in _COMMANDS.items():
    app.command(_name, short_help=_summary)(_command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"secateur {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Prune PyTorch models and make the pruning pay."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the console script exits with what this returns."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # dotted paths start from where the user is
    try:
        code = app(args=arguments, standalone_mode=False)
    except Exception as error:  # noqa: BLE001  the last stop before the user
        if "--debug" in arguments:
            traceback.print_exc()
        return _told(error, as_json="--json" in arguments)
    except KeyboardInterrupt:
        complain("interrupted")
        return Exit.INTERRUPTED
    return code if isinstance(code, int) else Exit.OK


def _told(error: Exception, *, as_json: bool) -> int:
    code, lines = _read(error)
    for line in lines:
        complain(line)
    if as_json:
        print(json.dumps({"error": type(error).__name__, "messages": lines, "exit_code": int(code)}))
    return code


def _read(error: Exception) -> tuple[Exit, list[str]]:
    if isinstance(error, _USAGE_ERROR):
        shown: Any = error
        return Exit.USAGE, [f"{shown.format_message()} (secateur --help)"]
    if isinstance(error, typer.Abort):
        return Exit.INTERRUPTED, ["interrupted"]
    if isinstance(error, BadRecipe):
        return Exit.USAGE, str(error).splitlines()
    if isinstance(error, SecateurError):
        return Exit.ERROR, [" ".join(str(error).split())]
    if isinstance(error, OSError) and error.filename:
        return Exit.ERROR, [f"{error.filename}: {error.strerror}"]
    return Exit.ERROR, [f"{type(error).__name__}: {' '.join(str(error).split())[:500]} (--debug shows where)"]
