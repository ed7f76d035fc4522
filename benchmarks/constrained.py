"""Write ``benchmarks/constrained.md`` from the results of ADMM and of energy budgets: ``python -m benchmarks.constrained``."""

import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from benchmarks.tables import about, table

PAGE = Path(__file__).with_name("constrained.md")
TOP = """# Constrained training: ADMM and energy budgets

Written by `python -m benchmarks.constrained` from the JSON files in `results/`. Accuracies are per cent on the test set after the last step;
nothing is picked over epochs or seeds. All runs: one thread of a two-core virtual machine that had much other work, so processor seconds, no wall times.
"""


def found(name: str) -> dict[str, Any] | None:
    """A result, if it is there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def spread(values: list[float]) -> str:
    """Mean, least and most."""
    mean = sum(values) / len(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"


def of_admm(name: str, title: str) -> str:
    """Accuracy beside the controls."""
    result = found(name)
    if result is None:
        return ""
    rows = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["method"] == method]
        seconds = [row["cpu_seconds"] for row in mine if row["cpu_seconds"] > 2]
        layers = ", ".join(f"{n}" for n in mine[0].get("per_layer", {}).values())
        rows.append(
            [
                method, f"{mine[0]['kept']:,}", f"{mine[0].get('times', 1):.1f}x", spread([r["accuracy"] for r in mine]), len(mine),
                f"{sum(seconds) / len(seconds):.0f}" if seconds else "", layers,
            ]
        )  # fmt: skip
    settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in result.items() if k not in ("machine", "rows"))
    head = ("method", "weights left", "", "accuracy", "seeds", "processor seconds", "left by layer (first seed)")
    return f"\n## {title}\n\n{settings}.\n\n{table(head, rows)}\n\n{about(result)}\n"


def of_energy(name: str, title: str) -> str:
    """Accuracy by budget."""
    result = found(name)
    if result is None:
        return ""
    dense = next(row for row in result["rows"] if row["method"] == "dense")
    methods = list(dict.fromkeys(row["method"] for row in result["rows"] if row["method"] != "dense"))
    by = {(row["method"], row["budget"]): row for row in result["rows"]}
    budgets = sorted({b for _, b in by if b != 100}, reverse=True)
    rows = [
        [f"{b} %", *(f"{by[m, b]['accuracy']:.2f} ({by[m, b]['energy']:.2%})" if (m, b) in by else "" for m in methods)]
        for b in budgets
    ]
    said = f"Dense: {dense['accuracy']:.2f}, {result['dense_microjoules']:.1f} µJ. {result['steps']} steps of batch {result['batch']} each; in brackets the energy reached.\n"
    return f"\n## {title}\n\n{said}\n{table(('energy', *methods), rows)}\n\n{about(result)}\n"


def of_bilinear() -> str:
    """Held-out error by measurements."""
    result = found("bilinear")
    if result is None:
        return ""
    counts = sorted({row["fitted_to"] for row in result["rows"]})
    rows = []
    for name in dict.fromkeys(row["network"] for row in result["rows"]):
        mine = {row["fitted_to"]: row for row in result["rows"] if row["network"] == name}
        first = next(iter(mine.values()))
        span = f"{first['least']:.2f} to {first['most']:.2f} {first['unit']}"
        rows.append(
            [
                name,
                first["terms"],
                first["widths_in_multiples_of"],
                span,
                *(f"{mine[c]['error_held_out']:.1%}" for c in counts),
            ]
        )
    head = ("network", "terms", "multiples of", "measured", *(f"{c} fitted" for c in counts))
    measured = result["rows"][0]["measured"]
    return (
        f"\n## The bilinear model: mean relative error on {result['held_out']} widths it has not seen\n\nMeasured: {measured}. Batch {result['batch']}, "
        f"ridge {result['ridge']}. The measurements are in `results/bilinear_*.csv`; those of the MobileNetV2-like network were "
        f"taken as the least of several rounds, the others as ratios to the full network in turns.\n\n{table(head, rows)}\n\n{about(result)}\n"
    )


def of_structured() -> str:
    """Accuracy and latency."""
    result = found("structured_admm")
    if result is None:
        return ""
    rows = [
        [
            r["method"],
            f"{r['macs']:.1%}",
            f"{r['accuracy']:.2f}",
            f"{r['latency']:.2f}",
            " ".join(map(str, r["widths"])),
        ]
        for r in result["rows"]
    ]
    head = ("method", "MACs", "accuracy", "latency (dense = 1)", "widths")
    return f"\n## Structured ADMM, a Fashion-MNIST convnet\n\n{result['steps']} steps after {result['dense_steps']} dense ones.\n\n{table(head, rows)}\n\n{about(result)}\n"


def of_layers() -> str:
    """ALPS."""
    result = found("layer_wise")
    if result is None:
        return ""
    rows = [
        [
            r["method"],
            r["pattern"],
            f"{r['score']:.2f}",
            "" if not r.get("error") else f"{r['error']:.2%}",
            r.get("cpu_seconds", ""),
        ]
        for r in result["rows"]
    ]
    head = ("method", "pattern", "Spearman x 100", "mean relative reconstruction error", "processor seconds")
    return f"\n## Layer-wise ADMM (ALPS), the 18 linear layers of the upper half of MiniLM\n\n{table(head, rows)}\n\n{about(result)}\n"


def main() -> None:
    """Write the page."""
    parts = [TOP]
    for path in sorted(RESULTS.glob("admm_*.json")):
        network, kept = path.stem.removeprefix("admm_").rsplit("_", 1)
        title = {"lenet_5": "LeNet-5 (430,500 weights)", "lenet_300_100": "LeNet-300-100 (266,200 weights)"}[network]
        parts.append(of_admm(path.stem, f"{title} on MNIST, {int(kept):,} left"))
    parts += [of_structured(), of_layers()]
    parts += [of_energy("energy_lenet_5", "Energy: LeNet-5 on MNIST"), of_energy("energy_resnet20", "Energy: ResNet-20 on CIFAR-10")]  # fmt: skip
    parts.append(of_bilinear())
    PAGE.write_text("".join(parts))


if __name__ == "__main__":
    main()
