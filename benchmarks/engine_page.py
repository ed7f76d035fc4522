"""Writes `benchmarks/engine.md` from the JSON files of the engine's benchmarks: `python -m benchmarks.engine_page`."""

import json
from pathlib import Path
from typing import Any

from benchmarks.engine import COLUMNS
from benchmarks.engine_combined import section
from benchmarks.engine_real import OTHERS
from benchmarks.record import RESULTS
from benchmarks.tables import table

NAMES = {
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2, 1×1 convolutions",
    "bert": "4 BERT-base layers, 128 tokens",
}
HEAD = """# The engine against dense ONNX Runtime and OpenVINO

`sc.compile` on randomly pruned networks (uniform over layers; stem, depthwise convolutions and classifiers of the image networks stay
dense), every engine in a process of its own, in turns. A number is how many times faster the engine is: the median of the rounds' ratios of
wall time; in brackets the ratio of the shortest times, and of processor time, which leaves out the moments when somebody else had the core
(one thread only). DeepSparse is run on the same sparse weights; the others are dense, and do not look at weights. Written by
`python -m benchmarks.engine_page` from `results/engine*.json`. The machine is a virtual one whose host has other work, and what skips zeros
lives on caches that others use too: between runs of one program rows differ by a tenth, at bad times by a third, so compare within a table.
"""
ORDER = (
    "engine",
    "engine_layers",
    "engine_vectors",
    "engine_stripes",
    "engine_generation",
    "engine_real",
    "engine_combined",
)


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    for name in ORDER:
        path = RESULTS / f"{name}.json"
        if path.exists():
            said = json.loads(path.read_text())
            parts += [WRITERS[name](said), foot(said, path)]
    (RESULTS.parent / "engine.md").write_text("\n".join(parts))


def foot(said: dict[str, Any], path: Path) -> str:
    """Where it was measured."""
    machine, rows = said["machine"], said["rows"]
    commits = ", ".join(f"`{c}`" for c in dict.fromkeys(row.get("commit", machine["secateur_commit"]) for row in rows))
    rounds = sorted({row["rounds"] for row in rows if "rounds" in row} or {said.get("rounds", 0)})
    times = f"{' to '.join(map(str, {rounds[0], rounds[-1]}))} rounds, " if rounds[-1] else ""
    return f"*`{path.name}`: {times}{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, commit {commits}, {machine['date']}.*\n"


def nets(said: dict[str, Any]) -> str:
    """Whole networks, a table for every number of threads and every batch size; then how time grows."""
    rows, tables = said["rows"], []
    for threads, batch in dict.fromkeys((row["threads"], row["batch"]) for row in rows):
        chosen = [row for row in rows if (row["threads"], row["batch"]) == (threads, batch)]
        head = ["network", "zeros", "ms", "against the better dense one", *COLUMNS, "difference from torch"]
        body = [
            [*named(row["net"]), f"{row['ms']:.1f}", ratio(row["better dense"], threads)]
            + [ratio(row.get(column, {}), threads) for column in COLUMNS]
            + [f"{row['error']:.0e}"]
            for row in chosen
        ]
        title = f"## Whole networks: {threads} thread{'s' if threads > 1 else ''}, batch {batch}"
        tables.append(f"{title}\n\n{table(head, body)}\n")
    return "\n".join([*tables, growth(rows)])


def growth(rows: list[dict[str, Any]]) -> str:
    """Milliseconds an example by threads and batch."""
    kinds = list(dict.fromkeys((row["threads"], row["batch"]) for row in rows))
    found = {(row["net"], row["threads"], row["batch"]): row for row in rows}
    head = ["network", "zeros", *(f"{t} thread{'s' if t > 1 else ''}, batch {b}" for t, b in kinds)]
    body = [
        [*named(net)]
        + [f"{found[net, t, b]['ms'] / b:.2f} ({found[net, t, b]['better dense']['ms'] / b:.1f})" for t, b in kinds]
        for net in dict.fromkeys(row["net"] for row in rows)
        if all((net, t, b) in found for t, b in kinds)
    ]
    return f"## Milliseconds an example (in brackets those of the better dense one)\n\n{table(head, body)}\n"


def named(net: str) -> tuple[str, str]:
    """The network and what it lacks."""
    kind, percent, *blocks = net.split("-")
    return NAMES[kind], f"{percent} %{', 4×1 blocks' if blocks else ''}"


def ratio(cell: dict[str, Any], threads: int) -> str:
    """``2.9 (3.1; 2.8)``."""
    if "ratio" not in cell:
        return "failed" if "failed" in cell else ""
    cpu = f"; {cell['cpu']:.2f}" if threads == 1 and cell["cpu"] > 0.1 else ""  # another process's is not known
    return f"{cell['ratio']:.2f} ({cell['least']:.2f}{cpu})"


def stripes(said: dict[str, Any]) -> str:
    """With stripes and without."""
    lines = [
        "## Stripes of rows, one thread, in one process\n",
        "| network | batch | times as fast with them | memory without | with |",
        "|---|---|---|---|---|",
    ]
    for row in said["rows"]:
        name = NAMES[row["net"].split("-")[0]]
        cells = row["batch"], f"{row['times as fast']:.2f}", f"{row['without MB']} MB", f"{row['with MB']} MB"
        lines.append(f"| {name}, {row['net'].split('-')[1]} % | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def vectors(said: dict[str, Any]) -> str:
    """Products with one vector."""
    lines = [
        "## A vector times a 4096 × 4096 matrix, one thread, against the better of the two\n",
        "| zeros | float32 | float16 | int8 |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['sparsity']} % | {r['float32']:.1f} | {r['float16']:.1f} | {r['int8']:.1f} |" for r in said["rows"]
    ]
    return "\n".join(lines) + "\n"


def generation(said: dict[str, Any]) -> str:
    """Tokens."""
    lines = ["## SmolLM2-135M, one token after 64 others, one thread\n"]
    lines += [
        "| zeros | int8 values against: ONNX Runtime int8 | ONNX Runtime | torch | float32 values against: ONNX Runtime int8 | ONNX Runtime | torch | difference, float32 |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for r in said["rows"]:
        cells = [
            f"{r[f'{v} against {e}']:.2f}"
            for v in ("int8", "float32")
            for e in ("onnxruntime int8", "onnxruntime", "torch")
        ]
        lines.append(f"| {r['sparsity']} % | {' | '.join(cells)} | {r['float32 difference']:.0e} |")
    return "\n".join(lines) + "\n"


def real(said: dict[str, Any]) -> str:
    """Trained networks."""
    head = [
        "network",
        "zeros",
        "score",
        "against the better dense one",
        *OTHERS,
        "file, MB (dense)",
        "difference from torch",
    ]
    body = [
        [r["net"], f"{100 * r['sparsity']:.0f} %", f"{r['score']:.2f} {r['unit']}", f"{r['against the better']:.2f}"]
        + [f"{r[f'against {name}']:.2f}" for name in OTHERS]
        + [f"{r['file MB']:.1f} ({r['dense file MB']:.1f})", f"{r['difference']:.0e}"]
        for r in said["rows"]
    ]
    words = "One image, one sentence of 64 tokens, one thread. SmolLM2's score is a perplexity: lower is better."
    return f"## Trained networks, pruned in one shot by layer-wise OBS, not trained again\n\n{words}\n\n{table(head, body)}\n"


def layers(said: dict[str, Any]) -> str:
    """Single layers, and memory."""
    zeros = [key for key in said["rows"][0]["ms"] if key[0].isdigit()]
    head = [
        "layer",
        "break-even",
        "with its own dense product",
        "dense: ONNX Runtime, OpenVINO, own",
        *(f"{float(z):.0%}" for z in zeros),
    ]
    body = [
        [r["layer"], share(r["break-even"]), share(r["break-even with own dense"])]
        + [", ".join(f"{r['ms'][e]:.2f}" for e in ("onnxruntime", "openvino", "own dense"))]
        + [f"{r['ms'][z]:.2f}" for z in zeros]
        for r in said["rows"]
    ]
    text = f"## Single layers, one thread: milliseconds, and from how many zeros on leaving them out pays\n\n{table(head, body)}\n"
    head = ["network", "zeros", "MB of a serving process", "ONNX Runtime, dense", "file, MB", "dense"]
    rows = [
        [*named(r["net"])]
        + [f"{r[f'{engine}{what} MB']:.1f}" for what in ("", " file") for engine in ("secateur", "onnxruntime")]
        for r in said["served"]
    ]
    return f"{text}\n## What serving takes of memory, without the imports\n\n{table(head, rows)}\n"


def share(of: float | None) -> str:
    """Per cent."""
    return "nowhere" if of is None else f"{of:.0%}"


WRITERS = {
    "engine": nets,
    "engine_layers": layers,
    "engine_vectors": vectors,
    "engine_stripes": stripes,
    "engine_generation": generation,
    "engine_real": real,
    "engine_combined": section,
}

if __name__ == "__main__":
    main()
