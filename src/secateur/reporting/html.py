"""A receipt as one self-contained HTML page: no network, no script, plots inside, light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from secateur.report import LayerProfile, Report
from secateur.reporting import plots
from secateur.reporting.curves import points_of
from secateur.reporting.groups import section
from secateur.reporting.templates import environment
from secateur.reporting.verdict import nothing_removed, verdict
from secateur.reporting.wording import bytes_of, count, percent, rows_of, shape_of, short, threads_of
from secateur.reporting.writing import write_text

if TYPE_CHECKING:
    from secateur.sensitivity import Sensitivity

__all__ = ["page", "write"]


def write(report: Report, path: str | Path, sensitivity: "Sensitivity | None" = None) -> Path:
    """Write the page to ``path``; a crash in the middle leaves what was there before.

    Args:
        report: the receipt.
        path: where to.
        sensitivity: curves to plot as well.
    """
    return write_text(path, page(report, sensitivity))


def page(report: Report, sensitivity: "Sensitivity | None" = None) -> str:
    """The page as text. Everything that comes from the user is escaped."""
    from secateur import __version__

    after, before = report.after, report.before
    counted = any(layer.macs for layer in after.layers)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            version=__version__,
            report=report,
            verdict=verdict(report),
            nothing_removed=nothing_removed(report),
            figures=list(_figures(report)),
            rows=rows_of(report),
            layers=[_layer(layer) for layer in after.layers],
            counted=counted,
            narrowed=bool(counted and before.macs and after.macs and after.macs < before.macs),
            most=" (the 40 largest)" if len(after.layers) > 40 else "",
            settings=[(key, str(value)) for key, value in report.settings.items()],
            metric=sensitivity.label if sensitivity else "",
            points=points_of(sensitivity) if sensitivity else ([], []),
            changes=Markup(plots.changes(report)),
            sparsity=Markup(plots.layer_sparsity(after.layers)) if any(layer.params for layer in after.layers) else "",
            macs=Markup(plots.layer_macs(before.layers, after.layers)) if counted else "",
            curves=Markup(plots.curves(sensitivity.curves, sensitivity.dense, sensitivity.label))
            if sensitivity
            else "",
            **section(report.groups, report.held, [layer.name for layer in before.layers]),
        )
    )


def _figures(report: Report) -> Iterator[tuple[str, str, str]]:
    """The few figures that people look for first."""
    before, after = report.before, report.after
    if after.params < before.params:
        yield (
            "parameters gone",
            percent(1 - after.params / before.params),
            f"{short(before.params)} → {short(after.params)}",
        )
    else:
        yield "parameters that are zero", percent(after.sparsity), f"of {count(after.params)}"
    if before.dense_bytes and after.packed_bytes:
        times = before.dense_bytes / after.packed_bytes
        yield "smaller on disk", f"{times:.1f}x", f"{bytes_of(before.dense_bytes)} → {bytes_of(after.packed_bytes)}"
    if before.gzip_bytes and after.gzip_bytes:
        times = before.gzip_bytes / after.gzip_bytes
        yield "smaller after gzip", f"{times:.1f}x", f"{bytes_of(before.gzip_bytes)} → {bytes_of(after.gzip_bytes)}"
    if before.macs and after.nonzero_macs:
        yield (
            "fewer useful MACs",
            f"{before.macs / after.nonzero_macs:.1f}x",
            f"{short(before.macs)} → {short(after.nonzero_macs)}",
        )
    if before.latency and after.latency and after.latency.median_ms:
        noise = "within noise" if before.latency.overlaps(after.latency) else threads_of(after.latency)
        yield "speed, measured here", f"{before.latency.median_ms / after.latency.median_ms:.2f}x", noise
    if after.score is not None:
        change = f"{after.score - before.score:+.4f}" if before.score is not None else ""
        yield "score", f"{after.score:.4f}", change


def _layer(layer: LayerProfile) -> dict[str, Any]:
    return {
        "name": layer.name or "(top level)",
        "kind": layer.kind,
        "shape": shape_of(layer.shape),
        "nonzeros": count(layer.nonzeros),
        "params": count(layer.params),
        "sparsity": percent(layer.sparsity) if layer.params else "",
        "macs": short(layer.macs) if layer.macs else "",
        "nonzero_macs": short(layer.nonzero_macs) if layer.nonzero_macs else "",
    }
