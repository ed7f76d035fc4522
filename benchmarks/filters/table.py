"""The tables of the page."""

import statistics
from typing import Any

from benchmarks.tables import about, table

TITLES = {
    "resnet20": "ResNet-20 on CIFAR-10",
    "resnet56": "ResNet-56 on CIFAR-10",
    "efficientnet_lite0": "EfficientNet-Lite0 on the ImageNet sample",
    "minilm": "MiniLM-L6 on STS-B",
}
INTRODUCTION = """## Criteria of channels at equal multiply-accumulates

One-shot, then a short training that is the same for all rows (from the network as cut, at the smaller budget, mean ± sample deviation over seeds).
A cell is the score as cut → with new batch-norm statistics. `global`: one ranking over all groups by score per cost; `layer`: the
same fraction of every group; `curves`: a knapsack over sensitivity curves. `+ repair`: readers refitted by least squares on the
calibration batches. Scores are per cent: accuracy on 1,000 lossless test images (CIFAR-10; standard error about 0.9), accuracy on the 250
images of classes that no training step saw (ImageNet sample; trained by distillation on the other 250 images), Spearman's
correlation on the development set (STS-B)."""

SHORT = """## Criteria of channels: the short protocol

What can be run in one sitting (`--short`, three hours of one core): the trainings are shorter and fewer pairs of STS-B are judged (`EFFORTS` in
`filters/networks.py` says by how much), and of the ways only those that did best are there. All else is as above."""


def section(found: dict[str, Any]) -> str:
    """All networks."""
    names = list(dict.fromkeys(row["network"] for row in found["rows"]))
    parts = [of_network(name, [row for row in found["rows"] if row["network"] == name]) for name in names]
    return "\n\n".join([SHORT if found.get("effort") == "short" else INTRODUCTION, *parts, about(found)])


def of_network(name: str, rows: list[dict[str, Any]]) -> str:
    """One table: a row for each case, a column for each budget."""
    dense = next(row for row in rows if row["method"] == "dense")
    shares = sorted({row["share"] for row in rows if row["method"] != "dense"}, reverse=True)
    cases = list(dict.fromkeys((r["method"], r["scope"], r["repair"]) for r in rows if r["method"] != "dense"))
    at = {(r["method"], r["scope"], r["repair"], r["share"]): r for r in rows}
    head = ["criterion, scope", *(f"{share:.0%} MACs" for share in shares), f"{shares[-1]:.0%}, trained"]
    body = []
    for case in cases:
        cells = [_cell(at.get((*case, share))) for share in shares]
        body.append(
            [f"{case[0]}, {case[1]}{' + repair' if case[2] else ''}", *cells, _trained(at.get((*case, shares[-1])))]
        )
    return f"### {TITLES[name]}\n\nDense: {_cell(dense)}.\n\n{table(head, body)}"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return f"fails: {row['failed'][:60]}"
    fresh = f" → {row['recalibrated']:.1f}" if "recalibrated" in row else ""
    return f"{row['score']:.1f}{fresh}"


def _trained(row: dict[str, Any] | None) -> str:
    scores = (row or {}).get("trained")
    if not scores:
        return ""
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.1f}{spread}"
