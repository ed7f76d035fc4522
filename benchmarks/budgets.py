"""Budgets: what was asked for and what came out, over networks and currencies; latency measured again, in turns, also in ONNX Runtime.

Magnitude, one ranking over all groups (scope="global"), random weights: budgets depend on shapes, not on values. ``achieved`` is what
the narrowed network costs, as a fraction of the dense one, recounted from the result. For latency the two networks are run in turns,
one thread, in torch and as ONNX files in ONNX Runtime; the ratio is the median over pairs. Those clocks are none of the pruner's.

    python -m benchmarks.budgets                         about 30 minutes; needs torchvision, timm, transformers, onnxruntime
    python -m benchmarks.budgets --only resnet50 --budgets latency:50%
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from benchmarks.narrowing_real import in_turns, session
from benchmarks.record import options, record
from benchmarks.tables import about, table
from secateur.costs.peak_memory import PeakMemory

BUDGETS = tuple(f"{cost}:{share}%" for share in (60, 50, 30) for cost in ("params", "macs", "bytes", "peak_memory"))
TIMED = ("latency:70%", "latency:50%", "latency:35%")
IMAGE = (1, 3, 224, 224)


def _vision(name: str) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)()


def _lite0() -> nn.Module:
    import timm

    return timm.create_model("tf_efficientnet_lite0")


def _bert() -> nn.Module:
    import transformers

    return transformers.BertModel(transformers.BertConfig(attn_implementation="eager"), add_pooling_layer=False)


class _Hidden(nn.Module):
    """BERT's last hidden state as a plain tensor, which every exporter understands."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.bert(tokens).last_hidden_state


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "resnet50": (lambda: _vision("resnet50"), lambda: torch.randn(IMAGE)),
    "mobilenet_v2": (lambda: _vision("mobilenet_v2"), lambda: torch.randn(IMAGE)),
    "efficientnet_lite0": (_lite0, lambda: torch.randn(IMAGE)),
    "vit_b_16": (lambda: _vision("vit_b_16"), lambda: torch.randn(IMAGE)),
    "bert_base": (lambda: _Hidden(_bert()), lambda: torch.randint(1000, 30000, (1, 128))),
}


def row_of(name: str, model: nn.Module, example: Any, budget: str) -> dict[str, Any]:
    """One budget, asked and achieved."""
    begun = time.perf_counter()
    pruned = sc.prune(model, "magnitude", granularity="channel", budget=budget, example_inputs=example)
    seconds = time.perf_counter() - begun
    cost, _, share = budget.partition(":")
    row: dict[str, Any] = {"network": name, "cost": cost, "asked": float(share[:-1]) / 100, "seconds": seconds}
    row["said"] = pruned.report.notes[0]
    before, after = pruned.report.before, pruned.report.after
    row |= {"params": after.params / before.params, "macs": after.macs / before.macs}
    if cost == "latency":
        return row | clocks(model, pruned.model, example)
    return row | {"achieved": _recount(cost, model, pruned.model, example)}


def _recount(cost: str, model: nn.Module, thin: nn.Module, example: Any) -> float:
    """Counted anew on the networks themselves, by other code than the budget's where there is such."""
    if cost == "params":
        return _params(thin) / _params(model)
    if cost == "macs":
        return sc.profile(thin, example).macs / sc.profile(model, example).macs
    if cost == "bytes":
        return _file(thin) / _file(model)
    dense, narrow = PeakMemory().measure([model, thin], example)
    return narrow / dense


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _file(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        sc.save(model, path)
        return path.stat().st_size


def clocks(model: nn.Module, thin: nn.Module, example: Any, seconds: float = 20.0) -> dict[str, Any]:
    """Torch and ONNX Runtime, dense and narrow in turns."""
    with torch.no_grad():
        torch_turns = in_turns(lambda: model(example), lambda: thin(example), seconds)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "dense.onnx", Path(folder) / "narrow.onnx"]
        for one, path in zip((model, thin), paths, strict=True):
            sc.export.onnx(one, (example,), path)
        onnx_turns = in_turns(*(session(path, (example,)) for path in paths), seconds)
    found = {f"torch_{k}": v for k, v in torch_turns.items()} | {f"onnx_{k}": v for k, v in onnx_turns.items()}
    return found | {"achieved": 1 / torch_turns["speedup"], "achieved_onnx": 1 / onnx_turns["speedup"]}


def section(found: dict[str, Any]) -> str:
    """The page's tables."""
    rows = found["rows"]
    asked = [(row["cost"], row["asked"]) for row in rows if row["cost"] != "latency"]
    columns = list(dict.fromkeys(asked))
    cell = {(r["network"], r["cost"], r["asked"]): f"{100 * r['achieved']:.1f}" for r in rows if r["cost"] != "latency"}
    names = list(dict.fromkeys(row["network"] for row in rows))
    counted = table(
        ["network", *(f"{cost} {share:.0%}" for cost, share in columns)],
        [[name, *(cell.get((name, *column), "") for column in columns)] for name in names],
    )
    timed = table(
        ["network", "asked", "torch", "ONNX Runtime", "torch ms", "ONNX Runtime ms", "parameters", "MACs"],
        [
            [
                r["network"],
                f"{r['asked']:.0%}",
                f"{100 * r['achieved']:.1f} % ({r['torch_speedup']:.2f}x)",
                f"{100 * r['achieved_onnx']:.1f} % ({r['onnx_speedup']:.2f}x)",
                f"{r['torch_dense_ms']:.0f} → {r['torch_narrow_ms']:.0f}",
                f"{r['onnx_dense_ms']:.0f} → {r['onnx_narrow_ms']:.0f}",
                f"{r['params']:.0%}",
                f"{r['macs']:.0%}",
            ]
            for r in rows
            if r["cost"] == "latency"
        ],
    )
    words = (
        "## Budgets\n\nPer cent of the dense network that the narrowed one costs, for what was asked. Magnitude, one ranking, random weights.\n\n",
        "\n\nLatency, one thread, batch 1, dense and narrow in turns, measured again after the pruner is done:\n\n",
        f"\n\n{about(found)}",
    )
    return words[0] + counted + words[1] + timed + words[2]


def parse() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--only", help="networks, separated by commas")
    parser.add_argument("--budgets", help="budgets, separated by commas")
    return parser.parse_args()


def main() -> None:
    """Measure and record; rows of another call stay."""
    args = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = args.out / "budgets.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() and (args.only or args.budgets) else []
    budgets = args.budgets.split(",") if args.budgets else (*BUDGETS, *TIMED)
    for name in args.only.split(",") if args.only else NETWORKS:
        make, inputs = NETWORKS[name]
        model, example = make().eval(), inputs()
        for budget in budgets:
            row = row_of(name, model, example, budget)
            key = ("network", "cost", "asked")
            rows = [old for old in rows if any(old[k] != row[k] for k in key)] + [row]
            print({k: v for k, v in row.items() if k != "said"}, flush=True)
            if not args.quick:
                record("budgets", rows, out=args.out)


if __name__ == "__main__":
    main()
