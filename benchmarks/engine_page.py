"""Writes `benchmarks/engine.md` from the JSON files of the engine's benchmarks: `python -m benchmarks.engine_page`."""

import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

NAMES = {
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2, 1×1 convolutions",
    "bert": "4 BERT-base layers, 128 tokens",
}
HEAD = """# The engine against dense ONNX Runtime and OpenVINO

`sc.compile` on randomly pruned networks (uniform over layers; stem, depthwise convolutions and classifiers of the image networks stay
dense), all engines with the same weights, every engine in a process of its own, in turns. A number is how many times faster the engine is:
the median of the rounds' ratios of wall time; in brackets the ratio of the shortest times, and of processor time, which leaves out the
moments when somebody else had the core. Written by `python -m benchmarks.engine_page` from `results/engine*.json`; every row says with how
many rounds it was taken. The machine is a virtual one whose host had other work: single rows can be off by 10 %, and the tables were not
measured at the same time. Between them the same code on the same network (BERT) came out a quarter apart, since what skips zeros lives on
the caches, which others use too, and dense products do not: compare rows of one table.
"""


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("engine*.json")):
        said = json.loads(path.read_text())
        writer = WRITERS.get(path.stem.removeprefix("engine_"), nets)
        parts += [writer(said["rows"]), foot(said["machine"], path)]
    (RESULTS.parent / "engine.md").write_text("\n".join(parts))


def foot(machine: dict[str, Any], path: Path) -> str:
    """Where it was measured."""
    return f"*`{path.name}`: {machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, commit `{machine['secateur_commit']}`, {machine['date']}.*\n"


def nets(rows: list[dict[str, Any]]) -> str:
    """Whole networks."""
    engines = [e for e in ("onnxruntime", "openvino", "onnxruntime int8") if any("ratio" in r.get(e, {}) for r in rows)]
    first = rows[0]
    lines = [
        f"## Whole networks: {first['threads']} thread{'s' if first['threads'] > 1 else ''}, batch {first['batch']}\n"
    ]
    lines += [
        "| network | zeros | " + " | ".join(f"against {e}" for e in engines) + " | rounds | difference from torch |"
    ]
    lines += ["|---|---|" + "---|" * (len(engines) + 2)]
    for row in rows:
        kind, percent, *blocks = row["net"].split("-")
        cells = [ratio(row.get(e, {}), row["threads"]) for e in engines]
        zeros = f"{percent} %{', 4×1 blocks' if blocks else ''}"
        lines.append(f"| {NAMES[kind]} | {zeros} | {' | '.join(cells)} | {row['rounds']} | {row['error']:.0e} |")
    return "\n".join(lines) + "\n"


def ratio(cell: dict[str, Any], threads: int) -> str:
    """``2.9 (3.1; 2.8)``."""
    if "ratio" not in cell:
        return "failed" if "failed" in cell else ""
    cpu = f"; {cell['cpu']:.2f}" if threads == 1 else ""
    return f"{cell['ratio']:.2f} ({cell['least']:.2f}{cpu})"


def stripes(rows: list[dict[str, Any]]) -> str:
    """With stripes and without."""
    lines = [
        "## Stripes of rows, one thread, in one process\n",
        "| network | batch | times as fast with them | memory without | with |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        name = NAMES[row["net"].split("-")[0]]
        cells = row["batch"], f"{row['times as fast']:.2f}", f"{row['without MB']} MB", f"{row['with MB']} MB"
        lines.append(f"| {name}, {row['net'].split('-')[1]} % | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def vectors(rows: list[dict[str, Any]]) -> str:
    """Products with one vector."""
    lines = [
        "## A vector times a 4096 × 4096 matrix, one thread, against the better of the two\n",
        "| zeros | float32 | float16 | int8 |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r['sparsity']} % | {r['float32']:.1f} | {r['float16']:.1f} | {r['int8']:.1f} |" for r in rows]
    return "\n".join(lines) + "\n"


def generation(rows: list[dict[str, Any]]) -> str:
    """Tokens."""
    lines = ["## SmolLM2-135M, one token after 64 others, one thread\n"]
    lines += [
        "| zeros | int8 values against: ONNX Runtime int8 | ONNX Runtime | torch | float32 values against: ONNX Runtime int8 | ONNX Runtime | torch | difference, float32 |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for r in rows:
        cells = [
            f"{r[f'{v} against {e}']:.2f}"
            for v in ("int8", "float32")
            for e in ("onnxruntime int8", "onnxruntime", "torch")
        ]
        lines.append(f"| {r['sparsity']} % | {' | '.join(cells)} | {r['float32 difference']:.0e} |")
    return "\n".join(lines) + "\n"


def real(rows: list[dict[str, Any]]) -> str:
    """Trained networks."""
    lines = [
        "## Trained networks, pruned in one shot, one thread, batch 1\n",
        "| network | zeros | against dense torch | file, MB | top-1 | difference from torch |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        score = f"{r['top-1']:.1f}" if "top-1" in r else ""
        lines.append(
            f"| {r['net']} | {100 * r['sparsity']:.0f} % | {r['against dense torch']:.2f} | {r['file MB']:.2f} | {score} | {r['difference']:.0e} |"
        )
    return "\n".join(lines) + "\n"


WRITERS = {"vectors": vectors, "generation": generation, "real": real, "stripes": stripes}

if __name__ == "__main__":
    main()
