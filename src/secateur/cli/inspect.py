"""``secateur inspect FILE``: what a model file holds, without the model's class."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from secateur.cli.options import Debug, Json
from secateur.cli.screen import print_json, show
from secateur.storage import File, StoredTensor, inspect

__all__ = ["command"]


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model that Secateur saved, or any safetensors file.")],
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Show what a model file holds: tensors, formats, bytes. Only the header is read; nothing is executed."""
    found = inspect(file)
    if as_json:
        print_json("inspect", {"file": asdict(found)})
        return
    for line in _head(found):
        show(line)
    show(_table(found))


def _head(found: File) -> Iterator[str]:
    maker = f"Secateur, file format {found.version}" if found.ours else "not written by Secateur"
    yield f"{found.path}: {f'weights of {found.model}, ' if found.model else ''}{maker}"
    smaller = f", {found.dense_nbytes / found.nbytes:.1f}x smaller than the dense tensors" if found.nbytes else ""
    yield f"{found.nbytes:,} bytes{smaller}; {len(found.masked)} masks; {'with' if found.report else 'without'} receipt"
    if found.narrowed:
        yield f"narrowed: {len(found.original)} tensors have fewer channels than those of the class; load it into the class as it was"
    for alias, name in found.tied.items():
        yield f"tied: {alias} is {name}"


def _table(found: File) -> Table:
    table = Table(box=box.SIMPLE)
    for column, side in (("tensor", "left"), ("shape", "left"), ("dtype", "left"), ("format", "left")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for column in ("written", "bytes", "dense"):
        table.add_column(column, justify="right")
    for tensor in (*found.tensors, *found.masks):
        table.add_row(*_cells(tensor, found.original.get(tensor.name)))
    return table


def _cells(tensor: StoredTensor, original: tuple[int, ...] | None) -> tuple[str, ...]:
    options = " ".join(f"{key}={value}" for key, value in tensor.options.items())
    narrowed = "" if tensor.stored_dtype == tensor.dtype else f" as {tensor.stored_dtype}"
    return (
        tensor.name,
        f"{_shape(original)} → {_shape(tensor.shape)}" if original else _shape(tensor.shape),
        f"{tensor.dtype}{narrowed}",
        f"{tensor.format} {options}".strip(),
        "" if tensor.density is None else f"{tensor.density:.1%}",
        f"{tensor.nbytes:,}",
        f"{tensor.dense_nbytes:,}",
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"
