"""The page of coverage from its results: ``python -m benchmarks.coverage.table``."""

import json
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.data import ROOT
from benchmarks.record import RESULTS
from benchmarks.tables import about

Row = dict[str, Any]
PEERS = {"torch_pruning": "Torch-Pruning 1.6.1", "kirigami": "torch-kirigami 0.2.1"}
ABOUT = """# Coverage

Half of the units of every coupled group leave, at random; the model is then held against its masked self on fresh inputs (1e-4
relative; in float64 where rounding decides the order of boxes), outputs keep their shapes, a backward pass gives finite gradients of the
right shapes, and the file loads into a new instance of the original class in another process and gives the same again (1e-6). Random
weights; statistics, scales and gains away from their defaults. One process each, one thread; seconds are processor time.

Peers are asked for less: that the pruned model runs, that its outputs keep their shapes, and that parameters fall. Torch-Pruning is told
the layers whose result is an output of the model, and nothing else; 60 s of processor time for each model, then it is stopped.
"""


def read(name: str) -> dict[tuple[str, str], Row]:
    """Rows of one result file by family and name."""
    path = RESULTS / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {(row["family"], row["name"]): row for row in rows}


def page() -> str:
    """The whole page."""
    own = read("coverage")
    peers = {title: found for name, title in PEERS.items() if (found := read(f"coverage_{name}"))}
    stamp = about(json.loads((RESULTS / "coverage.json").read_text()))
    lines = [
        ABOUT,
        "| family | models | pass | median s | slowest s | largest memory | median parameters left | "
        + "".join(f"{title} | " for title in peers),
    ]
    lines.append("|" + " --- |" * (7 + len(peers)))
    lines.extend(
        summary(family, [row for key, row in own.items() if key[0] == family], peers)
        for family in dict.fromkeys(family for family, _ in own)
    )
    lines.append(summary("all", list(own.values()), peers))
    lines += [
        "",
        *_others(own),
        "",
        "## Every model",
        "",
        "| model | outcome | groups | parameters left | difference | s | memory | "
        + "".join(f"{title} | " for title in peers),
        "|" + " --- |" * (7 + len(peers)),
    ]
    lines += [each(key, row, peers) for key, row in own.items()]
    return "\n".join([*lines, "", stamp]) + "\n"


def summary(family: str, rows: list[Row], peers: dict[str, dict[tuple[str, str], Row]]) -> str:
    """One line of the first table."""
    passed = [row for row in rows if row["outcome"] == "passed"]
    seconds = [row["prune_s"] for row in passed]
    own = f"| {family} | {len(rows)} | **{len(passed)}** | {statistics.median(seconds):.1f} | {max(seconds):.1f} | {max(r['peak_mb'] for r in passed) / 1000:.1f} GB | {statistics.median(r['ratio'] for r in passed):.2f} |"
    for found in peers.values():
        theirs = [found[row["family"], row["name"]] for row in rows if (row["family"], row["name"]) in found]
        own += f" {sum(row['outcome'] == 'passed' for row in theirs)} |"
    return own


def each(key: tuple[str, str], row: Row, peers: dict[str, dict[tuple[str, str], Row]]) -> str:
    """One line of the long table."""
    double = " (float64)" if row.get("double") else ""
    cells = [
        row["outcome"],
        row.get("groups", ""),
        _as(row.get("ratio"), ".2f"),
        _as(row.get("difference"), ".0e") + double,
        _as(row.get("prune_s"), ".1f"),
        row.get("peak_mb", ""),
    ]
    cells += [_their(found.get(key)) for found in peers.values()]
    return f"| {key[1]} | " + " | ".join(str(cell) for cell in cells) + " |"


def _their(row: Row | None) -> str:
    if row is None:
        return ""
    if row["outcome"] == "passed":
        return f"{row['ratio']:.2f} in {row['prune_s']:.1f} s"
    return {"slow": "no end"}.get(
        row["outcome"], "outputs changed" if "changed their shapes" in row.get("error", "") else row["outcome"]
    )


def _as(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _others(own: dict[tuple[str, str], Row]) -> Iterable[str]:
    """What did not pass, and what kept more than three quarters of its parameters."""
    for (_, name), row in own.items():
        if row["outcome"] != "passed":
            yield f"* `{name}`, {row['outcome']}: {row.get('error', '')[:240]}"
        elif row["ratio"] > 0.75:
            yield f"* `{name}` keeps {row['ratio']:.2f} of its parameters; {row['held']:.0%} sit in tensors of which a dimension is held"


def main() -> None:
    """Write the page."""
    (ROOT / "benchmarks" / "coverage.md").write_text(page())


if __name__ == "__main__":
    main()
