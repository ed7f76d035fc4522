"""The plots of a receipt as SVG to stand inside an HTML page: text stays text, and colours are variables of the page.

Matplotlib draws with stand-in colours, which are replaced by CSS variables afterwards, so one drawing serves light and dark.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secateur.report import LayerProfile, Report
from secateur.reporting.wording import bytes_of, count, percent, short

__all__ = [
    "COLOURS",
    "changes",
    "curves",
    "draw_curves",
    "drawn",
    "layer_macs",
    "layer_sparsity",
    "short_name",
    "silent_about_letters",
]

COLOURS = {
    "ink": "#010101",
    "soft": "#020202",
    "rule": "#030303",
    "before": "#040404",
    "after": "#050505",
    "idle": "#060606",
}
_MOST_LAYERS = 40
_WIDTH = 7.6  # inches; the page scales it
_LINES = ("-", "--", "-.", ":")

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are no formulas
    "font.size": 10,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["soft"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["ink"],
    "grid.color": COLOURS["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
}


def changes(report: Report) -> str:
    """What is left of each measure, before = 100 %."""
    before, after = report.before, report.after
    found = []
    for label, name in _MEASURES:
        old, new = getattr(before, name), getattr(after, name)
        if old and new is not None:
            show = bytes_of if "bytes" in name else short if "macs" in name else count
            found.append((label, new / old, f"{show(old)} → {show(new)}"))
    if before.latency and after.latency and before.latency.median_ms:
        old, new = before.latency.median_ms, after.latency.median_ms
        found.append(("latency", new / old, f"{old:.3g} → {new:.3g} ms"))
    return _drawn("changes", len(found), lambda axes: _change_bars(axes, found))


def layer_sparsity(layers: Sequence[LayerProfile]) -> str:
    """How much of each layer is zero."""
    chosen = _largest([layer for layer in layers if layer.params], lambda layer: layer.params)

    def draw(axes: Axes) -> None:
        places = range(len(chosen))
        axes.barh(places, [100.0] * len(chosen), color=COLOURS["idle"], height=0.66)
        axes.barh(places, [100 * layer.sparsity for layer in chosen], color=COLOURS["after"], height=0.66)
        for place, layer in enumerate(chosen):
            text = f"{percent(layer.sparsity)} of {short(layer.params)}"
            axes.text(101.5, place, text, va="center", fontsize=9, color=COLOURS["soft"])
        axes.set_yticks(places, [_name(layer) for layer in chosen])
        _as_percent(axes, "zero")

    return _drawn("sparsity", len(chosen), draw)


def layer_macs(before: Sequence[LayerProfile], after: Sequence[LayerProfile]) -> str:
    """The multiply-accumulates of each layer: as they were, as they are, and those with a weight that is not zero."""
    old = {layer.name: layer.macs or 0 for layer in before}
    chosen = _largest([layer for layer in after if layer.macs or old.get(layer.name)], lambda layer: layer.macs or 0)

    def draw(axes: Axes) -> None:
        places = range(len(chosen))
        axes.barh(places, [old.get(one.name, one.macs or 0) for one in chosen], color=COLOURS["before"], height=0.66)
        axes.barh(places, [one.macs or 0 for one in chosen], color=COLOURS["idle"], height=0.66)
        axes.barh(places, [one.nonzero_macs or 0 for one in chosen], color=COLOURS["after"], height=0.66)
        axes.set_yticks(places, [_name(layer) for layer in chosen])
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.set_xlabel("multiply-accumulates")
        _tidy(axes)

    return _drawn("macs", len(chosen), draw)


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], dense: float, label: str) -> str:
    """Score against sparsity, one line for each layer pruned alone."""
    return _drawn("sensitivity", 13, lambda axes: draw_curves(axes, lines, dense, label))


def draw_curves(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], dense: float, label: str) -> None:
    """Draw the lines of `curves` on ``axes``."""
    few, many = matplotlib.colormaps["tab10"], matplotlib.colormaps["turbo"]
    for place, (name, points) in enumerate(lines.items()):
        shade = few(place) if len(lines) <= 10 else many(0.08 + 0.84 * place / (len(lines) - 1))
        found = [(0.0, dense), *((100 * s, score) for s, score in points if math.isfinite(score))]
        xs, ys = zip(*found, strict=True)
        shown = short_name(name)
        axes.plot(xs, ys, _LINES[place % 4], color=shade, marker="o", markersize=3, linewidth=1.6, label=shown)
    axes.set_xlabel("% of one layer removed, all others untouched")
    axes.set_ylabel(label)
    axes.grid(visible=True, linewidth=0.5, alpha=0.6)
    axes.tick_params(length=0)
    columns = 1 if len(lines) <= 14 else 2
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), ncols=columns)


_MEASURES = (
    ("parameters", "params"),
    ("non-zero parameters", "nonzeros"),
    ("plain file", "dense_bytes"),
    ("sc.save file", "packed_bytes"),
    ("gzip of plain file", "gzip_bytes"),
    ("MACs", "macs"),
    ("MACs, weight not zero", "nonzero_macs"),
)


def _change_bars(axes: Axes, found: Sequence[tuple[str, float, str]]) -> None:
    places, most = range(len(found)), max([1.0, *(left for _, left, _ in found)])
    axes.barh(places, [100.0] * len(found), color=COLOURS["idle"], height=0.66)
    axes.barh(places, [100 * left for _, left, _ in found], color=COLOURS["after"], height=0.66)
    for place, (_, left, text) in enumerate(found):
        words = f"{100 * left:.0f} %   {text}" if left >= 0.1 else f"{100 * left:.1f} %   {text}"
        axes.text(100 * most + 1.5, place, words, va="center", fontsize=9, color=COLOURS["soft"])
    axes.set_yticks(places, [label for label, _, _ in found])
    _as_percent(axes, "of what it was before", 100 * most)


def _as_percent(axes: Axes, what: str, most: float = 100.0) -> None:
    axes.set_xlim(0, most)
    axes.set_xlabel(f"% {what}")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(visible=True, axis="x", linewidth=0.5, alpha=0.6)
    axes.margins(y=0.02)


def _largest(layers: list[LayerProfile], key: Callable[[LayerProfile], int]) -> list[LayerProfile]:
    kept = {layer.name for layer in sorted(layers, key=key, reverse=True)[:_MOST_LAYERS]}
    return [layer for layer in layers if layer.name in kept]


def _name(layer: LayerProfile) -> str:
    return short_name(layer.name or "(top level)")


def short_name(name: str) -> str:
    """A name that fits beside a plot: its end, and only letters that can be shown."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    shown = shown if len(shown) <= 34 else f"...{shown[-31:]}"
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib hides "_..." from legends


@contextmanager
def silent_about_letters() -> Iterator[None]:
    """No complaint about letters that matplotlib's own font lacks: the page will have them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _drawn(title: str, rows: int, draw: Callable[[Axes], None]) -> str:
    return drawn(title, max(1.4, 0.27 * rows + 0.7), lambda figure: draw(figure.add_subplot()))


def drawn(title: str, height: float, draw: Callable[[Figure], object]) -> str:
    """What ``draw`` puts on a figure of ``height`` inches, as SVG for a page; ``title`` is its class there."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}), silent_about_letters():
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        page = io.StringIO()
        figure.savefig(page, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(page.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    """Only the drawing: no prolog, no fixed size, names of its own, colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 aria-hidden="true" class="{title}"', svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{title}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{title}-", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    return re.sub(r" font-family: [^;\"]*;", "", svg).strip()
