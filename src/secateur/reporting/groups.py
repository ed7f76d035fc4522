"""Which channels leave together, as a picture, as tables and as a page of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.report import ChannelGroup, HeldChannels
from secateur.reporting.rails import picture
from secateur.reporting.templates import environment
from secateur.reporting.wording import count
from secateur.reporting.writing import write_text

__all__ = ["page", "render_groups", "section", "summary", "write"]

_NAMED = 4  # layers in one cell; more are counted


def write(model: str, found: Sequence[ChannelGroup], path: str | Path, **more: Any) -> Path:
    """Write `page` to ``path``; a crash in the middle leaves what was there before."""
    return write_text(path, page(model, found, **more))


def page(
    model: str, found: Sequence[ChannelGroup], *, held: Sequence[HeldChannels] = (), layers: Sequence[str] = ()
) -> str:
    """A page about the groups alone.

    Args:
        model: its title.
        found: the groups.
        held: what may not leave.
        layers: the names of all layers, in the order in which they are to be drawn.
    """
    from secateur import __version__

    template = environment().get_template("groups_page.html.j2")
    return template.render(
        version=__version__, model=model, summary=summary(found, held), **section(found, held, layers)
    )


def section(found: Sequence[ChannelGroup], held: Sequence[HeldChannels], layers: Sequence[str]) -> dict[str, Any]:
    """What the template ``groups.html.j2`` shows."""
    return {
        "picture": Markup(picture(found, held, layers)) if found or held else "",
        "pruned": any(group.kept < group.units for group in found),
        "groups": [_row(group) for group in found],
        "held": [{"why": one.reason, "channels": count(sum(one.channels)), "layers": _few(one.layers)} for one in held],
    }


def summary(found: Sequence[ChannelGroup], held: Sequence[HeldChannels]) -> str:
    """All of it in one sentence.

    >>> summary([ChannelGroup(name="a.weight", units=8, kept=4)], [HeldChannels(reason="output", channels=(10,))])
    '1 group of 8 units, of which 4 stay; 10 channels may not leave.'
    """
    units, kept = sum(group.units for group in found), sum(group.kept for group in found)
    stay = f", of which {count(kept)} stay" if kept < units else ""
    stuck = sum(sum(one.channels) for one in held)
    groups = f"{len(found)} group{'s' if len(found) != 1 else ''} of {count(units)} units{stay}"
    return f"{groups}; {count(stuck)} channels may not leave."


def render_groups(model: str, found: Sequence[ChannelGroup], held: Sequence[HeldChannels]) -> RenderableType:
    """The tables for a `rich` console."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, side in (("made by", "left"), ("read by", "left"), ("a unit is", "left"), ("units", "right")):
        table.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    table.add_column("weights", justify="right")
    for group in found:
        row = _row(group)
        table.add_row(*(Text(row[key]) for key in ("makers", "readers", "unit", "units", "params")))
    stuck = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    stuck.add_column("may not leave, because it", overflow="fold")
    stuck.add_column("channels", justify="right")
    stuck.add_column("made by", overflow="fold")
    for one in held:
        stuck.add_row(Text(one.reason), count(sum(one.channels)), Text(_few(one.layers)))
    head = Text(f"{model}: {summary(found, held)}", "bold")
    return Group(head, *([table] if found else []), *([stuck] if held else []))


def _row(group: ChannelGroup) -> dict[str, str]:
    units = f"{count(group.units)} → {count(group.kept)}" if group.kept < group.units else count(group.units)
    unit = group.kind if group.span == 1 else f"{group.kind} of {group.span} channels"
    names = {role: _few(getattr(group, role)) for role in ("makers", "readers", "others")}
    names["makers"] = names["makers"] or group.name
    return names | {"unit": unit, "units": units, "params": count(group.params)}


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name or "(top level)" for name in names[:_NAMED]) + more
