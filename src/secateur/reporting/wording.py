"""Numbers as people read them, and the rows that every rendering of a receipt shows."""

from typing import NamedTuple

from secateur.report import Latency, Profile, Report

__all__ = ["Row", "bytes_of", "count", "latency_of", "percent", "ratio", "rows_of", "shape_of", "short", "threads_of"]


class Row(NamedTuple):
    """One line of a receipt, in words."""

    label: str
    before: str
    after: str
    change: str


def count(number: float) -> str:
    """A count with separators."""
    return f"{number:,.0f}"


def short(number: float) -> str:
    """A large count with a unit.

    >>> short(66024), short(1_820_000_000), short(12)
    ('66.0 k', '1.82 G', '12')
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"{number:.0f}"


def bytes_of(number: float) -> str:
    """Bytes with a decimal unit.

    >>> bytes_of(210_560), bytes_of(48)
    ('211 kB', '48 B')
    """
    return f"{short(number)}B" if number >= 999.5 else f"{number:.0f} B"


def percent(fraction: float) -> str:
    """A fraction in percent; what is nearly all or nearly nothing never rounds to it.

    >>> percent(0.9), percent(0.99996), percent(1.0), percent(0.0)
    ('90.0 %', '>99.9 %', '100 %', '0 %')
    """
    if fraction in (0, 1):
        return f"{100 * fraction:.0f} %"
    text = f"{100 * fraction:.1f}"
    return {"0.0": "<0.1 %", "100.0": ">99.9 %"}.get(text, f"{text} %")


def shape_of(shape: tuple[int, ...]) -> str:
    """A shape, e.g. ``64x3x3``."""
    return "x".join(map(str, shape))


def latency_of(latency: Latency) -> str:
    """Median and quartiles in milliseconds.

    >>> latency_of(Latency(median_ms=1.5, low_ms=1.25, high_ms=2, runs=9, threads=1))
    '1.50 ms (1.25-2.00)'
    """
    digits = 1 if latency.median_ms >= 100 else 2 if latency.median_ms >= 1 else 3
    low, median, high = (f"{value:.{digits}f}" for value in (latency.low_ms, latency.median_ms, latency.high_ms))
    return f"{median} ms ({low}-{high})"


def threads_of(latency: Latency) -> str:
    """How many threads a latency was measured with, in words."""
    return f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"


def ratio(before: float, after: float, less: str, more: str) -> str:
    """How ``after`` stands to ``before``.

    >>> ratio(100, 10, "fewer", "more"), ratio(10, 10, "fewer", "more"), ratio(100, 0, "fewer", "more")
    ('10.0x fewer', 'the same', 'all gone')
    """
    if before == after:
        return "the same"
    if after == 0:
        return "all gone"
    if before == 0:
        return "new"
    factor, word = (before / after, less) if before > after else (after / before, more)
    return f"{factor:.{2 if factor < 9.95 and less == 'faster' else 1 if factor >= 1.05 else 3}f}x {word}"


def rows_of(report: Report) -> list[Row]:
    """The lines of the receipt, those that neither side measured left out."""
    before, after = report.before, report.after
    rows = [_row(label, name, before, after, words) for label, name, words in _COUNTS]
    rows.insert(2, Row("sparsity", percent(before.sparsity), percent(after.sparsity), ""))
    rows += [_latency_row(before, after), _score_row(before.score, after.score)]
    return [row for row in rows if row.before or row.after]


_FEWER, _SMALLER = ("fewer", "more"), ("smaller", "larger")
_COUNTS = (
    ("parameters", "params", _FEWER),
    ("non-zero parameters", "nonzeros", _FEWER),
    ("plain safetensors file", "dense_bytes", _SMALLER),
    ("weights as sc.save packs them", "packed_bytes", _SMALLER),
    ("plain file after gzip", "gzip_bytes", _SMALLER),
    ("MACs", "macs", _FEWER),
    ("MACs, weight not zero", "nonzero_macs", _FEWER),
)


def _row(label: str, name: str, before: Profile, after: Profile, words: tuple[str, str]) -> Row:
    show = bytes_of if name.endswith("bytes") else short if name.endswith("macs") else count
    old, new = getattr(before, name), getattr(after, name)
    change = "" if old is None or new is None else ratio(old, new, *words)
    return _row_of(label, None if old is None else show(old), None if new is None else show(new), change)


def _latency_row(before: Profile, after: Profile) -> Row:
    old, new = before.latency, after.latency
    found, change = new or old, ""
    label = f"latency, {threads_of(found)}, {found.device}" if found else "latency"
    if old and new and new.median_ms:
        noise = f"{old.median_ms / new.median_ms:.2f}x, within noise"
        change = noise if old.overlaps(new) else ratio(old.median_ms, new.median_ms, "faster", "slower")
    return _row_of(label, latency_of(old) if old else None, latency_of(new) if new else None, change)


def _score_row(before: float | None, after: float | None) -> Row:
    change = "" if before is None or after is None else f"{after - before:+.4f}"
    old, new = (None if value is None else f"{value:.4f}" for value in (before, after))
    return _row_of("score", old, new, change)


def _row_of(label: str, before: str | None, after: str | None, change: str) -> Row:
    """A row; empty where neither side was measured."""
    if before is None and after is None:
        return Row(label, "", "", "")
    return Row(label, before or "not measured", after or "not measured", change)
