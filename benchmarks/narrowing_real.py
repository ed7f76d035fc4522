"""Real networks with real weights, narrowed by 10, 30 and 50 % of every group: what comes out equal, what it weighs, how fast it is.

Magnitude, the same fraction of every coupled group (``scope="layer"``). Every row says by how much the narrowed network differs from
the masked one on fresh inputs, from itself when it is loaded into a new instance of the original class in another process, and from
its ONNX file. Latency is one thread, the dense network and the narrowed one in turns; the ratio is the median over the pairs.

No quality is claimed: nothing is trained after the cut. Where a score is cheap it is given, to be honest about the damage.

    python -m benchmarks.narrowing_real --weights ~/.cache/secateur-weights      about 25 minutes; installs the packages that hold weights
    python -m benchmarks.narrowing_real --only mtcnn
    python -m benchmarks.narrowing_real --table                                  the page from the results
"""

import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks.data import ROOT, WEIGHTS, load_cifar
from benchmarks.models.cases import CASES, Case, fetch
from benchmarks.record import options, record
from benchmarks.tables import about
from secateur.coupling.running import tensors_of

SPARSITIES = (0.1, 0.3, 0.5)
Call = Callable[[], object]


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return tensors_of(model(*inputs))


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of its output."""
    assert [t.shape for t in found] == [t.shape for t in wanted]
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)


def in_turns(dense: Call, narrow: Call, seconds: float) -> dict[str, float]:
    """Medians in milliseconds, and the median of the ratios of neighbours."""
    dense(), narrow()
    pairs, end = [], time.perf_counter() + seconds
    while len(pairs) < 9 or (len(pairs) < 300 and time.perf_counter() < end):
        a = time.perf_counter()
        dense()
        b = time.perf_counter()
        narrow()
        pairs.append((b - a, time.perf_counter() - b))
    return {
        "dense_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "narrow_ms": 1e3 * statistics.median(b for _, b in pairs),
        "speedup": statistics.median(a / b for a, b in pairs),
        "pairs": len(pairs),
    }


def session(path: Path, inputs: Any) -> Call:
    """A call of an ONNX file, one thread."""
    import onnxruntime

    choice = onnxruntime.SessionOptions()
    choice.intra_op_num_threads = choice.inter_op_num_threads = 1
    choice.log_severity_level = 3
    found = onnxruntime.InferenceSession(os.fspath(path), choice, providers=["CPUExecutionProvider"])
    feed = {one.name: t.numpy() for one, t in zip(found.get_inputs(), tensors_of(inputs), strict=True)}
    return lambda: found.run(None, feed)


def rows_of(name: str, weights: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """All rows of one network."""
    case = CASES[name]
    model = case.load(weights)
    example = case.example(0)
    dense_params = sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sc.save(model, folder / "dense.safetensors")
        whole = sc.export.onnx(model, example, folder / "dense.onnx")
        facts = {
            "check": case.check(model, weights),
            "params": dense_params,
            "bytes": (folder / "dense.safetensors").stat().st_size,
            "onnx_bytes": whole.nbytes,
            "onnx_difference": whole.difference,
        }
        yield {"network": name, "sparsity": 0.0} | facts | score(name, model)
        for sparsity in SPARSITIES:
            row = narrowed(case, model, sparsity, folder)
            thin = row.pop("model")
            row |= {f"torch_{k}": v for k, v in latency_torch(model, thin, example, seconds).items()}
            onnx_calls = (session(folder / file, example) for file in ("dense.onnx", "narrow.onnx"))
            row |= {f"onnx_{k}": v for k, v in in_turns(*onnx_calls, seconds).items()}
            row["loaded_difference"] = elsewhere(name, folder)
            yield {"network": name, "sparsity": sparsity} | row | score(name, thin)


def narrowed(case: Case, model: nn.Module, sparsity: float, folder: Path) -> dict[str, Any]:
    """One row without its clocks; the file and what it should compute are left in ``folder``."""
    example, fresh = case.example(0), case.example(1)
    begun = time.perf_counter()
    pruned = sc.prune(model, sparsity=sparsity, granularity="channel", scope="layer", example_inputs=example)
    seconds = time.perf_counter() - begun
    masked = copy.deepcopy(model)
    pruned.masks.apply_(masked)
    found = outputs(pruned.model, fresh)
    sc.save(pruned, folder / "narrow.safetensors")
    torch.save({"inputs": fresh, "outputs": found}, folder / "expected.pt")
    exported = sc.export.onnx(pruned, fresh, folder / "narrow.onnx", tolerance=1e-3)  # what it is, is in the table
    return {
        "model": pruned.model,
        "prune_seconds": seconds,
        "params": sum(p.numel() for p in pruned.model.parameters()),
        "masked_difference": apart(found, outputs(masked, fresh)),
        "bytes": (folder / "narrow.safetensors").stat().st_size,
        "onnx_bytes": exported.nbytes,
        "onnx_difference": exported.difference,
    }


def latency_torch(model: nn.Module, thin: nn.Module, example: Any, seconds: float) -> dict[str, float]:
    with torch.no_grad():
        return in_turns(lambda: model(*example), lambda: thin(*example), seconds)


def elsewhere(name: str, folder: Path) -> float:
    """Load the file into a new instance in another process, and compare what it computes."""
    call = [sys.executable, "-m", "benchmarks.narrowing_real", "--load", f"{name}={folder}"]
    found = subprocess.run(call, capture_output=True, text=True, check=False, cwd=ROOT)
    if found.returncode:
        raise RuntimeError(found.stderr)
    return float(found.stdout.split()[-1])


def load(name: str, folder: Path) -> float:
    """The other process."""
    fresh = CASES[name].make().eval()
    expected = torch.load(folder / "expected.pt", weights_only=True)
    loaded = sc.load(folder / "narrow.safetensors", fresh).model
    return apart(outputs(loaded, expected["inputs"]), expected["outputs"])


def score(name: str, model: nn.Module) -> dict[str, float]:
    """ResNet-56 is quick to judge: before and after new batch-norm statistics."""
    if name != "resnet56":
        return {}
    from benchmarks.resnet import Judge

    return Judge(load_cifar(), 1000).scores(model, plain=False)


def page(results: Path) -> str:
    """Everything as one table."""
    found = json.loads(results.read_text())
    lines = [
        "# Real networks, narrowed",
        "",
        "Magnitude, the same fraction of every coupled group, no training afterwards: this shows that narrowing computes what it "
        "should and what it pays, not what it costs in quality. Differences are relative to the largest output: to the masked "
        "network on fresh inputs, to the same network loaded from its file in another process, and of its ONNX file to torch. "
        "Latency: one thread, dense and narrowed in turns, the median of the ratios; other work ran on the machine, so "
        "read ratios, not milliseconds.",
        "",
        "| network | removed | parameters | file, MB | ONNX, MB | = masked | = loaded | = ONNX | torch, ms | faster | ONNX Runtime, ms | faster |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [_line(row) for row in found["rows"]]
    checks = [row for row in found["rows"] if "check" in row]
    lines += ["", "What the dense networks were checked against (in brackets what their sources say):", ""]
    lines += [f"* `{row['network']}`: {row['check']}" for row in checks]
    scores = [row for row in found["rows"] if "recalibrated" in row]
    if scores:
        lines += [
            "",
            "ResNet-56, accuracy before → after new batch-norm statistics from 1,000 training images, no training:",
            "",
        ]
        lines += [
            f"* {row['sparsity']:.0%} of every group: {row['accuracy']:.1f} → {row['recalibrated']:.1f} %"
            for row in scores
        ]
    return "\n".join([*lines, "", about(found)]) + "\n"


def _line(row: dict[str, Any]) -> str:
    size = f"{row['params']:,} | {row['bytes'] / 1e6:.2f} | {row['onnx_bytes'] / 1e6:.2f}"
    if not row["sparsity"]:
        return f"| {row['network']} | dense | {size} | | | {row['onnx_difference']:.0e} | | | | |"
    same = f"{row['masked_difference']:.0e} | {row['loaded_difference']:.0e} | {row['onnx_difference']:.0e}"
    clocks = " | ".join(
        f"{row[f'{k}_dense_ms']:.2f} → {row[f'{k}_narrow_ms']:.2f} | {row[f'{k}_speedup']:.2f}x"
        for k in ("torch", "onnx")
    )
    return f"| | {row['sparsity']:.0%} | {size} | {same} | {clocks} |"


def main() -> None:
    """Measure, one network after the other; results are written after each."""
    parser = options(__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--only", help="networks with this in their name; the rows of others stay as they were")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each latency")
    parser.add_argument("--load", help="internal: NAME=FOLDER")
    parser.add_argument("--table", action="store_true", help="only write the page")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.load:
        name, _, folder = chosen.load.partition("=")
        print(load(name, Path(folder)))
        return
    results = chosen.out / "narrowing_real.json"
    if not chosen.table:
        fetch(chosen.weights)
        for name in [name for name in CASES if not chosen.only or chosen.only in name]:
            rows = []
            for row in rows_of(name, chosen.weights, chosen.seconds):
                rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
                print(rows[-1], flush=True)
            old = json.loads(results.read_text())["rows"] if results.exists() else []
            rows = [row for row in old if row["network"] != name] + rows
            rows.sort(key=lambda row: list(CASES).index(row["network"]))
            record("narrowing_real", rows, out=chosen.out, criterion="magnitude", scope="layer", seconds=chosen.seconds)
    (ROOT / "benchmarks" / "narrowing_real.md").write_text(page(results))


if __name__ == "__main__":
    main()
