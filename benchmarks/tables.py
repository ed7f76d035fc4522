"""The tables of ``benchmarks/README.md``, from the JSON files: ``python -m benchmarks.tables`` writes the page anew.

A results file without a section of its own is linked, so that nothing measured stays out of sight.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, summarise

Row = dict[str, Any]
NETWORKS = {
    "mnist_lenet_300_100": "LeNet-300-100 on MNIST",
    "mnist_convnet": "MNIST convnet of the TensorFlow toolkit's tutorial",
    "mnist_lenet_5": "LeNet-5 (Caffe) on MNIST",
    "imdb": "LSTM of the TensorFlow toolkit's example on IMDB",
}
ELSEWHERE = {  # scripts that write their own section
    "data_free": "benchmarks.data_free",
    "budgets": "benchmarks.budgets",
    "filters": "benchmarks.filters.table",
    "filters_short": "benchmarks.filters.table",
    "fashion": "benchmarks.fashion",
    "on_disk": "benchmarks.on_disk",
}
PAGES = ("coverage", "narrowing_real", "engine", "constrained", "second_order", "coevolution")
INTRODUCTION = """# Benchmarks

Every table comes from a JSON file in `results/`, written by a script that anyone can run (`python -m benchmarks.<script> --help`,
from the root of the repository, with the data sets in `../shared/data`). `python -m benchmarks.tables` writes this page.
Accuracies are per cent on the test set after the last step; nothing is picked over epochs. "sparsity" is the fraction of the
prunable weights that is removed; ± is the sample standard deviation over seeds. Wall times were taken on a machine with other
work; processor time is given beside them where it matters.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def about(found: Row) -> str:
    """Where and with what a file was measured."""
    it = found["machine"]
    return (
        f"*{it['cpu']}, {it['cores']} cores, {it['threads']} thread(s), torch {it['torch']}, Python {it['python']}, "
        f"commit `{it['secateur_commit']}`, {it['date']}.*"
    )


def accuracy_section(name: str, found: Row) -> str:
    """Dense, one-shot and gradual rows with their controls."""
    rows = found["rows"]
    means = {
        (one["method"], one["criterion"], one["scope"], one["sparsity"]): f"{one['mean']:.2f} ± {one['spread']:.2f}"
        for one in summarise(rows, "accuracy", "method", "criterion", "scope", "sparsity")
    }
    dense = [f"{key[0]}: {value}" for key, value in means.items() if key[0].startswith("dense")]
    columns = list(dict.fromkeys(key[:3] for key in means if key[1]))
    head = ["sparsity", *(f"{method}, {criterion}, {scope}" for method, criterion, scope in columns)]
    sparsities = sorted({key[3] for key in means if key[1]})
    body = [[f"{100 * s:g} %", *(means.get((*column, s), "") for column in columns)] for s in sparsities]
    return "\n\n".join(
        [
            f"## {NETWORKS[name]}",
            f"{'; '.join(dense)}. {len({row['seed'] for row in rows})} seeds; {settings(found)}.",
            table(head, body),
            size_table(rows),
            about(found),
        ]
    )


def settings(found: Row) -> str:
    """What the file says about the training."""
    return ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in found.items() if isinstance(value, int | float)
    )


def size_table(rows: list[Row]) -> str:
    """Bytes of the gradual magnitude rows against the dense file: plain, gzip, packed."""
    dense = [row for row in rows if row["method"].startswith("dense")][-1]
    gradual = [row for row in rows if (row["method"], row["criterion"]) == ("gradual", "magnitude")]
    kinds = [kind for kind in ("gzip_bytes", "packed_bytes") if kind in gradual[0]]
    means = {kind: {one["sparsity"]: one["mean"] for one in summarise(gradual, kind, "sparsity")} for kind in kinds}
    against = {"gzip_bytes": dense["gzip_bytes"], "packed_bytes": dense["plain_bytes"]}
    names = {
        "gzip_bytes": "safetensors + gzip (against the dense one's)",
        "packed_bytes": "`sc.save` (against plain safetensors)",
    }
    body = [
        [f"{100 * s:g} %", *(f"{means[kind][s]:,.0f} ({against[kind] / means[kind][s]:.2f}x)" for kind in kinds)]
        for s in means[kinds[0]]
    ]
    first = ["dense", *(f"{against[kind]:,}" for kind in kinds)]
    return table(["gradual: bytes", *(names[kind] for kind in kinds)], [first, *body])


def resnet_section(name: str, found: Row) -> str:
    """Before and after batch-norm recalibration."""
    rows = found["rows"]
    dense, pruned = rows[0], rows[1:]
    cases = list(dict.fromkeys((row["criterion"], row["scope"], row["prunable"]) for row in pruned))
    cells = {
        (
            row["criterion"],
            row["scope"],
            row["prunable"],
            row["sparsity"],
        ): f"{row['accuracy']:.1f} → {row['recalibrated']:.1f}"
        for row in pruned
    }
    sparsities = sorted({row["sparsity"] for row in pruned})
    body = [[", ".join(case), *(cells.get((*case, s), "") for s in sparsities)] for case in cases]
    plain = {row["sparsity"]: row["recalibrated_plain"] for row in rows if "recalibrated_plain" in row}
    return "\n\n".join(
        [
            f"## {name.replace('resnet', 'ResNet-')} on CIFAR-10, one-shot",
            f"Dense {dense['accuracy']:.1f} → {dense['recalibrated']:.1f}. Each cell: before → after batch-norm recalibration on "
            f"{found['calibration_images']:,} training images without labels, cropped and mirrored as in training; "
            f"{found['test_images']:,} lossless test images. `conv`: all convolutions are prunable, the classifier is not; "
            "`blocks`: the first convolution is not either; `all`: both are.",
            table(["criterion, scope, prunable", *(f"{100 * s:g} %" for s in sparsities)], body),
            "Recalibrated on plain images instead (first case): "
            + ", ".join(f"{100 * s:g} %: {value:.1f}" for s, value in plain.items())
            + ".",
            about(found),
        ]
    )


def scale_section(_name: str, found: Row) -> str:
    """Seconds and memory of planning."""
    body = [
        [
            f"{row['parameters'] / 1e6:,.0f} M",
            {"one": "one tensor", "layers": f"{row['tensors']} tensors"}[row["split"]],
            row["planner"],
            f"{row['seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['memory_ratio']:.2f}",
            f"{row['process_peak_over_weights']:.2f}",
        ]
        for row in found["rows"]
        if "failed" not in row
    ]
    head = ["weights", "split", "planner", "s", "processor s", "peak / weights", "whole process / weights"]
    return "\n\n".join(
        [
            "## Planning global magnitude at scale",
            f"Sparsity {found['sparsity']:g}, float32. Peak / weights counts the weights and all that planning added, masks "
            "included; the last column counts the interpreter and torch too. Every count is exact.",
            table(head, body),
            about(found),
        ]
    )


def anchor_section(_name: str, found: Row) -> str:
    """The MLP rows."""
    body = [
        [row["weights"], row["scope"], f"{100 * row['sparsity']:g} %", f"{row['kept']:,}", f"{row['accuracy']:.2f}"]
        for row in found["rows"]
    ]
    return "\n\n".join(
        [
            "## Exactness: MLP 784-40-20-10 on MNIST",
            "Masks are identical to those of a numpy oracle that sorts everything (ties to the earlier weight), also where rounding "
            "makes thousands of weights equal.",
            table(["weights", "scope", "sparsity", "kept", "accuracy"], body),
            about(found),
        ]
    )


def section_for(name: str) -> Callable[[str, Row], str] | None:
    """What writes the section of a file."""
    if name in NETWORKS:
        return accuracy_section
    if name in ELSEWHERE:
        module = import_module(ELSEWHERE[name])
        return lambda _, found: module.section(found)
    return {
        "resnet20": resnet_section,
        "resnet56": resnet_section,
        "scale": scale_section,
        "anchor": anchor_section,
    }.get(name)


def page(results: Path) -> str:
    """The whole page."""
    parts, others = [INTRODUCTION.strip()], []
    order = ["anchor", *NETWORKS, "resnet20", "resnet56", *ELSEWHERE, "scale"]
    found = {path.stem: path for path in sorted(results.glob("*.json"))}
    for name in [n for n in order if n in found] + [n for n in found if n not in order]:
        write = section_for(name)
        if write:
            parts.append(write(name, json.loads(found[name].read_text())))
        else:
            others.append(f"* [`results/{name}.json`](results/{name}.json)")
    others = [f"* [`{name}.md`]({name}.md)" for name in PAGES if (results.parent / f"{name}.md").exists()] + others
    return "\n\n".join(parts + (["## More\n\n" + "\n".join(others)] if others else [])) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    (args.results.parent / "README.md").write_text(page(args.results))


if __name__ == "__main__":
    main()
