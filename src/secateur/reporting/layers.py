"""The table of layers for a terminal; long ones are folded to the largest layers."""

from collections.abc import Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from secateur.report import LayerProfile
from secateur.reporting.wording import count, percent, shape_of, short

__all__ = ["layer_table"]

_FOLD_ABOVE, _SHOWN = 30, 20  # tables longer than the one show the largest of the other
_NAME = 30  # letters


def layer_table(before: Sequence[LayerProfile], after: Sequence[LayerProfile]) -> RenderableType:
    """One row for each layer; ``before`` gives what shapes and parameters were."""
    if not after:
        return Text("")
    counted = any(layer.macs is not None for layer in after)
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("layer", no_wrap=True, overflow="ellipsis")
    table.add_column("kind", no_wrap=True, overflow="ellipsis", max_width=16)
    table.add_column("shape", no_wrap=True)
    for heading in ("non-zero", "of", "sparsity", *(("MACs", "non-zero") if counted else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    old = {layer.name: layer for layer in before}
    shown, folded = _fold(after)
    for layer in shown:
        table.add_row(*_cells(old.get(layer.name, layer), layer, counted=counted))
    if folded:
        table.add_row(*_folded(folded, counted=counted))
    return table


def _fold(layers: Sequence[LayerProfile]) -> tuple[list[LayerProfile], list[LayerProfile]]:
    if len(layers) <= _FOLD_ABOVE:
        return list(layers), []
    largest = {layer.name for layer in sorted(layers, key=_weight)[-_SHOWN:]}
    return [one for one in layers if one.name in largest], [one for one in layers if one.name not in largest]


def _weight(layer: LayerProfile) -> tuple[int, int]:
    return layer.params, layer.macs or 0


def _cells(before: LayerProfile, after: LayerProfile, *, counted: bool) -> list[str | Text]:
    shape = shape_of(after.shape)
    if before.shape != after.shape:
        shape = f"{shape_of(before.shape)} → {shape}"
    cells: list[str | Text] = [
        Text(_tail(after.name) or "(top level)"),
        Text(after.kind),
        shape,
        _count(after.nonzeros),
    ]
    cells += [_count(before.params), percent(after.sparsity) if after.params else ""]
    return cells + ([_macs(after.macs), _macs(after.nonzero_macs)] if counted else [])


def _tail(name: str) -> str:
    """The end of a long path: that is where layers differ."""
    return name if len(name) <= _NAME else f"...{name[3 - _NAME :]}"


def _folded(layers: Sequence[LayerProfile], *, counted: bool) -> list[str | Text]:
    whole = LayerProfile(
        name=f"... {len(layers)} smaller ones",
        kind="",
        params=sum(layer.params for layer in layers),
        nonzeros=sum(layer.nonzeros for layer in layers),
        macs=sum(layer.macs or 0 for layer in layers),
        nonzero_macs=sum(layer.nonzero_macs or 0 for layer in layers),
    )
    return _cells(whole, whole, counted=counted)


def _count(number: int) -> str:
    return count(number) if number < 10_000_000 else short(number)


def _macs(number: int | None) -> str:
    return "" if not number else short(number)
