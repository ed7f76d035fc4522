"""A receipt, or a single profile, as tables for a terminal."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.report import Profile, Report
from secateur.reporting.curves import points_of
from secateur.reporting.layers import layer_table
from secateur.reporting.verdict import nothing_removed, profile_verdict, verdict
from secateur.reporting.wording import bytes_of, count, latency_of, percent, rows_of, short, threads_of

if TYPE_CHECKING:
    from secateur.sensitivity import Sensitivity

__all__ = ["render", "render_profile", "render_sensitivity", "render_text", "render_totals"]


def render_text(found: "Report | Profile | Sensitivity", width: int = 110) -> str:
    """The tables as plain text, without colours."""
    page = io.StringIO()
    console = Console(file=page, width=width, color_system=None, force_terminal=False)
    if isinstance(found, Report):
        console.print(render(found))
    else:
        console.print(render_profile(found) if isinstance(found, Profile) else render_sensitivity(found))
    lines = page.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def render(report: Report) -> RenderableType:
    """The receipt for a `rich` console: totals, layers, then what it means."""
    parts: list[RenderableType] = [
        Text(f"{report.after.model}: {report.method}" if report.method else report.after.model, "bold")
    ]
    if report.after.inputs:
        parts.append(Text(f"measured on {report.after.inputs}", "dim"))
    parts += [render_totals(report), layer_table(report.before.layers, report.after.layers)]
    alarm = "bold red" if nothing_removed(report) else "bold"
    parts += [Text(sentence, alarm if place == 0 else "") for place, sentence in enumerate(verdict(report))]
    return Group(*parts, *_notes(report.remarks))


def render_profile(profile: Profile) -> RenderableType:
    """A single profile for a `rich` console."""
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for label, value in _facts(profile):
        table.add_row(label, value)
    head = [Text(profile.model, "bold")] + ([Text(f"measured on {profile.inputs}", "dim")] if profile.inputs else [])
    lines = [Text(sentence, "bold red") for sentence in profile_verdict(profile)]
    return Group(*head, table, layer_table(profile.layers, profile.layers), *lines, *_notes(profile.notes))


def render_sensitivity(found: "Sensitivity") -> RenderableType:
    """Sensitivity curves for a `rich` console."""
    headings, rows = points_of(found)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    for heading in ("weights", *headings):
        table.add_column(heading, justify="right")
    for name, values in rows:
        table.add_row(Text(name), count(found.sizes[name]), *values)
    head = (
        f"{found.label} when one layer alone is pruned ({found.method}, {found.granularity}); dense {found.dense:.4f}"
    )
    return Group(Text(head, "bold"), table)


def _facts(profile: Profile) -> Iterable[tuple[str, str]]:
    yield "parameters", count(profile.params)
    yield "non-zero parameters", f"{count(profile.nonzeros)} ({percent(profile.sparsity)} zero)"
    for label, size in (
        ("plain safetensors file", profile.dense_bytes),
        ("weights as sc.save packs them", profile.packed_bytes),
        ("plain file after gzip", profile.gzip_bytes),
    ):
        if size is not None:
            yield label, bytes_of(size)
    if profile.macs is not None and profile.nonzero_macs is not None:
        yield "MACs", f"{short(profile.macs)} ({count(profile.macs)})"
        yield "MACs, weight not zero", short(profile.nonzero_macs)
    if profile.latency:
        yield f"latency, {threads_of(profile.latency)}, {profile.latency.device}", latency_of(profile.latency)
    if profile.score is not None:
        yield "score", f"{profile.score:.4f}"


def render_totals(report: Report) -> Table:
    """What a receipt counts and measures, before and after, without layers and words."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", style="bold", no_wrap=True)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows_of(report):
        table.add_row(*row)
    return table


def _notes(notes: Sequence[str]) -> list[RenderableType]:
    return [Text(f"note: {note}", "dim") for note in notes]
