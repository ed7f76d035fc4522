"""What goes to the screen: results to stdout; progress, notes and errors to stderr."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from secateur import __version__

__all__ = ["complain", "note", "print_json", "progress_bar", "show", "stamped", "working"]

_PIPE_WIDTH = 100
Tick = Callable[[str, int, int | None], None]


def show(renderable: Any) -> None:
    """Print a result on stdout: as wide as the terminal, or 100 columns into a pipe."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(highlight=False, soft_wrap=isinstance(renderable, str), markup=False, width=width).print(renderable)


def note(text: str) -> None:
    """Print a remark on stderr."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


def complain(text: str) -> None:
    """Print an error on stderr, in one line."""
    Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]error:[/] ", end="")
    note(text)


def stamped(command: str, values: dict[str, Any]) -> dict[str, Any]:
    """Say which version and command ``values`` come from; also how Secateur recognises its own files."""
    return {"secateur": __version__, "command": command} | values


def print_json(command: str, values: dict[str, Any]) -> None:
    """Print ``values`` as one strict JSON object; what is not finite becomes null."""
    sys.stdout.write(json.dumps(finite(stamped(command, values)), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Make ``value`` fit for strict JSON: NaN and infinities as ``None``, keys as text.

    >>> finite({"a": (1.0, float("nan"))})
    {'a': [1.0, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value if isinstance(value, str | int | None) else str(value)


@contextmanager
def progress_bar() -> Iterator[Tick]:
    """A bar on stderr that a library callback moves: ``tick(what happens, done, of how many)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task("working", total=None)
        yield lambda text, done, total: bar.update(job, description=text, completed=done, total=total)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Say on stderr that something takes a moment."""
    with Console(stderr=True).status(text):
        yield
