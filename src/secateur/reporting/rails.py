"""The picture of a network's groups: layers from top to bottom, a line through those whose channels leave together.

Lines that do not overlap share a column, as branches do in a drawing of a repository's history; so a chain of blocks needs two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secateur.report import ChannelGroup, HeldChannels
from secateur.reporting.plots import COLOURS, drawn, short_name
from secateur.reporting.wording import count

__all__ = ["Rail", "lay_out", "picture"]

_MOST_LAYERS = 60
_ROW = 0.235  # inches


@dataclass(frozen=True)
class Rail:
    """One group in the picture: its column, and the rows where it is made and read."""

    column: int
    makers: tuple[int, ...]
    readers: tuple[int, ...]


def picture(found: Sequence[ChannelGroup], held: Sequence[HeldChannels], layers: Sequence[str]) -> str:
    """SVG to stand in a page; networks with many layers are cut off below.

    Args:
        found: the groups.
        held: what may not leave.
        layers: names in the order of the rows; those without channels of their own are passed over.
    """
    rows = _rows(found, held, layers)
    shown = {name: row for name, row in rows.items() if row < _MOST_LAYERS}
    rails = lay_out(found, rows)
    columns = max((rail.column for rail in rails), default=0) + 1

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[min(0.35 + 0.3 * columns, 4), 4])
        for rail in rails:
            _draw_rail(left, rail)
        _draw_bars(right, found, held, shown)
        names = [short_name(name or "(top level)") for name in shown]
        if len(rows) > len(shown):
            names.append(f"... {len(rows) - len(shown)} more")
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.4, -0.6)
        left.set_xlim(-0.5, columns - 0.5)
        for axes in (left, right):
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        left.set_xticks([])

    return drawn("groups", _ROW * (len(shown) + 1) + 0.5, draw)


def lay_out(found: Sequence[ChannelGroup], rows: Mapping[str, int]) -> list[Rail]:
    """Give each group a column in which no other group crosses its rows; long ones stand left.

    >>> one, two = (ChannelGroup(name=n, makers=(n,), readers=(m,)) for n, m in ("ab", "bc"))
    >>> [rail.column for rail in lay_out([one, two], {"a": 0, "b": 1, "c": 2})]
    [0, 1]
    """
    placed: list[tuple[int, int, int, Rail]] = []
    spans = []
    for group in found:
        makers, readers = (
            tuple(sorted(rows[name] for name in names if name in rows)) for names in (group.makers, group.readers)
        )
        if makers or readers:
            both = makers + readers
            spans.append((min(both) - max(both), min(both), makers, readers))
    for length, top, makers, readers in sorted(spans):
        bottom = top - length
        taken = {column for start, end, column, _ in placed if start <= bottom and top <= end}
        column = next(place for place in range(len(placed) + 1) if place not in taken)
        placed.append((top, bottom, column, Rail(column, makers, readers)))
    return [rail for *_, rail in sorted(placed, key=lambda one: one[:3])]


def _rows(found: Sequence[ChannelGroup], held: Sequence[HeldChannels], layers: Sequence[str]) -> dict[str, int]:
    """The row of every layer that makes or reads channels."""
    used = [name for group in found for name in (*group.makers, *group.readers)]
    used += [name for one in held for name in one.layers]
    known = {name: place for place, name in enumerate(layers)}
    return {name: row for row, name in enumerate(sorted(dict.fromkeys(used), key=lambda n: known.get(n, len(known))))}


def _draw_rail(axes: Axes, rail: Rail) -> None:
    rows = (*rail.makers, *rail.readers)
    colour, x = matplotlib.colormaps["tab10"](rail.column % 10), float(rail.column)
    axes.plot([x, x], [min(rows), max(rows)], color=colour, linewidth=2.2, solid_capstyle="round", zorder=1)
    only_read = [row for row in rail.readers if row not in rail.makers]
    axes.scatter([x] * len(rail.makers), rail.makers, s=34, color=colour, zorder=3)
    axes.scatter(
        [x] * len(only_read), only_read, s=34, facecolor=COLOURS["idle"], edgecolor=colour, linewidth=1.8, zorder=3
    )


def _draw_bars(
    axes: Axes, found: Sequence[ChannelGroup], held: Sequence[HeldChannels], rows: Mapping[str, int]
) -> None:
    free, kept, stuck = dict.fromkeys(rows, 0), dict.fromkeys(rows, 0), dict.fromkeys(rows, 0)
    for group in found:
        for name in set(group.makers) & rows.keys():
            free[name] += group.units * group.span
            kept[name] += group.kept * group.span
    for one in held:
        for name, channels in zip(one.layers, one.channels, strict=True):
            if name in rows:
                stuck[name] += channels
    places = list(rows.values())
    for values, colour in ((free, "before"), (kept, "after")):
        axes.barh(places, list(values.values()), left=list(stuck.values()), color=COLOURS[colour], height=0.62)
    axes.barh(places, list(stuck.values()), color=COLOURS["idle"], height=0.62)
    most = max([1, *(free[name] + stuck[name] for name in rows)])
    for name, row in rows.items():
        before, after = free[name] + stuck[name], kept[name] + stuck[name]
        said = f"{count(before)} → {count(after)}" if after < before else count(before) if before else ""
        axes.text(before + 0.015 * most, row, said, va="center", fontsize=9, color=COLOURS["soft"])
    axes.set_xlim(0, 1.22 * most)
    axes.set_xticks([])
