"""A co-evolved pair as one self-contained page: pictures side by side, how the search went, and the receipts in short."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor, nn

from secateur.cyclegan.logging import samples
from secateur.errors import WrongModel
from secateur.pictures import grid, png
from secateur.report import Pruned
from secateur.reporting.plots import COLOURS, drawn
from secateur.reporting.templates import environment
from secateur.reporting.wording import rows_of, short
from secateur.reporting.writing import write_text

__all__ = ["page", "write"]


def write(
    path: str | Path, pair: Sequence[Pruned], dense: Sequence[nn.Module], images: Sequence[Tensor], **more: Any
) -> Path:
    """Write `page` to ``path``; a crash in the middle leaves what was there before."""
    return write_text(path, page(pair, dense, images, **more))


def page(
    pair: Sequence[Pruned],
    dense: Sequence[nn.Module],
    images: Sequence[Tensor],
    *,
    names: tuple[str, str] = ("A", "B"),
    quality: Mapping[str, Mapping[str, Any]] | None = None,
    title: str = "",
) -> str:
    """The page as text.

    Args:
        pair: what `CoEvolution` returned, ``(g_ab, g_ba)``; for one generator, a list of one.
        dense: the generators it was made from.
        images: for each generator a few inputs ``[n, channels, h, w]`` in [-1, 1].
        names: of the domains.
        quality: row name to column name to value, shown as a table.
        title: of the page.

    Raises:
        WrongModel: the numbers of generators and inputs differ.
    """
    from secateur import __version__

    if not len(pair) == len(dense) == len(images):
        raise WrongModel(
            f"{len(pair)} results, {len(dense)} dense generators and {len(images)} sets of inputs were given"
        )
    history = list(pair[0].report.settings.get("history", ()))
    columns = list(dict.fromkeys(column for row in (quality or {}).values() for column in row))
    return (
        environment()
        .get_template("evolution_page.html.j2")
        .render(
            version=__version__,
            title=title or f"{pair[0].report.after.model}: co-evolution",
            method=pair[0].report.method,
            figures=_figures(pair),
            pictures=_pictures(pair, dense, images, names),
            progress=Markup(_progress(history, len(pair), names)) if history else "",
            generations=[_generation(done) for done in history],
            receipts=[
                (_direction(k, len(pair), names), rows_of(side.report), side.report.remarks)
                for k, side in enumerate(pair)
            ],
            columns=columns,
            quality=[(name, [_value(row.get(c)) for c in columns]) for name, row in (quality or {}).items()],
        )
    )


def _direction(k: int, count: int, names: tuple[str, str]) -> str:
    if count == 1:
        return "generator"
    return f"{names[k]} → {names[1 - k]}"


def _figures(pair: Sequence[Pruned]) -> list[tuple[str, str, str]]:
    """What people look for first, over all generators together."""
    found = []
    reports = [side.report for side in pair]
    for label, key in (("fewer parameters", "params"), ("fewer MACs", "macs")):
        before, after = (sum(getattr(getattr(r, when), key) or 0 for r in reports) for when in ("before", "after"))
        if before and after:
            found.append((label, f"{before / after:.1f}x", f"{short(before)} → {short(after)}"))
    timed = [(r.before.latency, r.after.latency) for r in reports]
    both = [(b.median_ms, a.median_ms) for b, a in timed if b is not None and a is not None]
    if both:
        before, after = (sum(side) for side in zip(*both, strict=True))
        found.append(("faster, measured here", f"{before / after:.1f}x", f"{before:.1f} → {after:.1f} ms"))
    return found


def _pictures(
    pair: Sequence[Pruned], dense: Sequence[nn.Module], images: Sequence[Tensor], names: tuple[str, str]
) -> list[dict[str, Any]]:
    """For each direction: what goes in, and what comes out of the dense and of the compressed generators."""
    found = []
    for k, x in enumerate(images):
        rows = {"input": x, "dense": samples((dense[k], dense[-1 - k]), x, x[:1])[1]}
        made = samples((pair[k].model, pair[-1 - k].model), x, x[:1])
        rows["compressed"] = made[1]
        if len(pair) > 1:
            rows["reconstructed"] = made[2]
        cells = [(label, [_uri(image) for image in batch]) for label, batch in rows.items()]
        found.append({"title": _direction(k, len(pair), names), "rows": cells, "size": max(x.shape[-1], 72)})
    return found


def _uri(image: Tensor) -> str:
    return "data:image/png;base64," + base64.b64encode(png(grid([image[None]], gap=0))).decode()


def _progress(history: Sequence[Mapping[str, Any]], count: int, names: tuple[str, str]) -> str:
    """The best and the mean objective of every generation."""

    def draw(figure: Figure) -> None:
        for k in range(count):
            axes = figure.add_subplot(1, count, k + 1)
            xs = [done["generation"] for done in history]
            for key, colour, style in (("mean", "before", "--"), ("best", "after", "-")):
                ys = [done["sides"][k][key] for done in history]
                axes.plot(xs, ys, style, color=COLOURS[colour], marker="o", markersize=3, label=key)
            axes.set_title(_direction(k, count, names).replace("→", "to"), loc="left", fontsize=10)
            axes.set_xlabel("generation")
            axes.set_ylabel("objective" if not k else "")
            axes.grid(visible=True, linewidth=0.5, alpha=0.6)
            axes.tick_params(length=0)
            axes.legend(frameon=False, fontsize=8)

    return drawn("progress", 2.6, draw)


def _generation(done: Mapping[str, Any]) -> list[str]:
    cells = [str(done["generation"])]
    for side in done["sides"]:
        cells += [_value(side[key]) for key in ("best", "mean", "aware", "cycle")]
        cells += [f"{100 * side['share']:.1f} %", str(side["evaluations"])]
    return [*cells, f"{done['seconds']:.1f} s"]


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
