"""``benchmarks/second_order.md`` from the JSON files, published rows beside ours."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.data import ROOT
from benchmarks.monks import METHODS, best_of
from benchmarks.tables import Row, about, table

INTRODUCTION = """# Second order, measured

`python -m benchmarks.second_order <network>`; [the methods](../docs/second-order.md). Seconds are wall time on a machine with other work: not to be
compared closely. "SparseGPT" is the published method (columns, own targets per block, no joint solve), "Wanda" activation norms, both from this library.
"split, dense targets", "tuned", "held out" (damping chosen by held-out batches) and "layers by errors" are what this library adds. Italic rows are published, on other checkpoints unless said.
The commit is that of the last run; a row that was not run again stands from an earlier one.
"""
SECTIONS = {
    "lenet": ("LeNet-300-100 of the L-OBS authors, MNIST", "Test error in per cent; 10,000 unlabelled training images. Layer budgets are given or found from errors. Retraining as for LeNet-5, three seeds."),
    "lenet_5": ("LeNet-5, MNIST", "Test error in per cent; layer budgets found from errors; 10,000 unlabelled training images. Retraining: Adam, batches of 500 warped images (1,000 for LeNet-300-100), the dense network as teacher, weights averaged."),
    "mlp": ("MLP 784-40-20-10, MNIST, one-shot", "Accuracy in per cent. Fisher: 1,000 labelled images; layer-wise: 5,000 unlabelled ones."),
    "resnet20": ("ResNet-20, CIFAR-10, one-shot", "Accuracy in per cent on 1,000 images; block convolutions only, batch norms refreshed."),
    "resnet56": ("ResNet-56, CIFAR-10, one-shot", "As above."),
    "stories": ("stories260k", "Perplexity on 100 stories; calibration on 16 windows of 512 tokens; every linear layer of the blocks, alike unless by errors; at 4:8 without `down`, whose 172 inputs are no multiple of 8."),
    "minilm": ("MiniLM, STS-B", "Spearman's correlation on the development set, times 100; 128 pairs, no scores; every linear layer of the encoder, alike unless by errors."),
    "smollm": ("SmolLM2-135M, WikiText-2", "Perplexity on 16 windows of 512 evenly from the second half of the validation text, 16 for calibration from the first; every linear layer of the blocks, alike unless by errors."),
}  # fmt: skip
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "lenet": {
        "Dong et al. 2017": {"7 % kept": "3.10", "1.5 % kept, 640 steps": "1.96 (643 steps)"},
    },
    "lenet_5": {
        "Dong et al. 2017": {"7 % kept": "3.21", "0.9 % kept, 840 steps": "1.66 (841 steps)"},
    },
    "mlp": {
        "best known, another network": {"90 %": "93.14", "95 %": "88.92", "98 %": "55.45"},
    },
    "resnet20": {
        "magnitude": {"50 %": "88.44", "60 %": "85.24", "70 %": "78.79", "80 %": "54.01", "90 %": "11.79"},
        "WoodFisher": {"50 %": "90.23", "60 %": "87.96", "70 %": "81.05", "80 %": "62.63", "90 %": "11.49"},
        "CHITA": {"50 %": "90.60", "60 %": "89.22", "70 %": "84.12", "80 %": "57.90", "90 %": "15.60"},
    },
}


def write(results: Path) -> None:
    """The page, from what there is."""
    parts = [INTRODUCTION]
    for name, (title, words) in SECTIONS.items():
        file = results / f"second_order_{name}.json"
        if file.exists():
            parts.append(section(json.loads(file.read_text()), title, words, PUBLISHED.get(name, {})))
    monks = results / "monks.json"
    if monks.exists():
        parts.append(monks_section(json.loads(monks.read_text())))
    speed = results / "second_order_speed.json"
    if speed.exists():
        parts.append(speed_section(json.loads(speed.read_text())))
    (ROOT / "benchmarks" / "second_order.md").write_text("\n".join(parts))


def _rank(level: str) -> tuple[bool, float]:
    """Plain sparsities by size, patterns after them; others as they come."""
    return ":" in level, float(level.removesuffix(" %")) if level.endswith(" %") else 0.0


def section(found: dict[str, Any], title: str, words: str, published: Mapping[str, Mapping[str, str]]) -> str:
    """Methods down, levels across; seconds of the slowest level behind."""
    rows: list[Row] = found["rows"]
    dense = next((row["score"] for row in rows if row["method"] == "dense"), None)
    rows = [row for row in rows if row["method"] != "dense"]
    levels = sorted(dict.fromkeys(row["level"] for row in rows), key=_rank)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    scores = {(row["level"], row["method"]): row for row in rows}
    lines = []
    for method in methods:
        own = [scores.get((level, method)) for level in levels]
        slowest = max(row["seconds"] for row in own if row)
        lines.append([method, *(f"{row['score']:.2f}" if row else "" for row in own), f"{slowest:g}"])
    for who, values in published.items():
        lines.append([f"*{who}*", *(f"*{values[level]}*" if level in values else "" for level in levels), ""])
    head = ["", *levels, "seconds"]
    return f"## {title}\n\n{words} Dense: {dense}.\n\n{table(head, lines)}\n\n{about(found)}\n"


def monks_section(found: dict[str, Any]) -> str:
    """Best (median) over starts, and how good the best is."""
    lines = []
    for problem, paper in found["paper"].items():
        for steps in (0, 30):
            cells = []
            for method in METHODS:
                own = [
                    r
                    for r in found["rows"]
                    if (str(r["problem"]), r["method"], r["retrained"]) == (problem, method, steps)
                ]
                best = best_of(own)
                middle = statistics.median_low(row["left"] for row in own)
                again = f"{best['train_again']:g}/{best['test_again']:g}"
                cells.append(f"{best['left']} ({middle}) {best['train']:g}/{best['test']:g}; {again}")
            what = f"{steps} steps after each" if steps else "no retraining"
            lines.append([f"MONK-{problem}, {what}", *cells, f"*{paper[0]} to {paper[1]}, {paper[2]:g}/{paper[3]:g}*"])
    words = (
        "`python -m benchmarks.monks`: weights left where training accuracy last held the paper's, best (median of 20 starts), with the accuracies of the "
        f"best in training and test; behind the semicolon what is left, trained once more. OBS's Hessian is that of the training objective, weight decay included. All in {found['seconds']:.0f} s."
    )
    head = ["", "OBS", "OBD", "magnitude", "random", "*Hassibi & Stork 1993*"]
    return f"## MONK's problems\n\n{words}\n\n{table(head, lines)}\n\n{about(found)}\n"


def speed_section(found: dict[str, Any]) -> str:
    """Seconds by width."""
    kinds = (("seconds", "error"), ("joint_solve_s", "joint_solve_error"), ("llm_compressor_s", "llm_compressor_error"))

    def cell(row: Row, seconds: str, error: str) -> str:
        left = f" ({row[error]:.2f} %)" if error in row else ""
        return f"{row[seconds]:g}{left}" if seconds in row else ""

    lines = [[row["level"], *(cell(row, *kind) for kind in kinds)] for row in found["rows"]]
    words = (
        "Seconds at 50 %; for one layer from a ready Hessian (in brackets: the error that is left, of the layer's energy), for ResNet-50 with "
        "everything. llm-compressor: its `sparsify_weight` on the same layer and Hessian."
    )
    head = ["", "columns", "joint solve after it", "llm-compressor"]
    return f"## Speed\n\n{words}\n\n{table(head, lines)}\n\n{about(found)}\n"
