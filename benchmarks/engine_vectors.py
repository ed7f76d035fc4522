"""One vector times a sparse matrix (batch 1 of a linear layer): the engine against dense float32 in ONNX Runtime, OpenVINO and torch.

    python -m benchmarks.engine_vectors

4096 x 4096, which no cache holds; all in one process on one thread, in turns; medians of the rounds' ratios.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from benchmarks.engine import exported, with_onnxruntime, with_openvino
from benchmarks.engine_nets import prune_randomly_
from benchmarks.record import options, record
from benchmarks.turns import rounds_in_turns


def main() -> None:
    """Run and record."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=4096)
    given = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(1, given.size)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for percent in (50, 70, 80, 90, 95):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(given.size, given.size, bias=False)).eval()
            prune_randomly_(model, percent / 100, 1, lambda *_: False)
            inputs = exported(model, (x,), path := Path(folder) / "net.onnx")
            calls = {
                "onnxruntime": with_onnxruntime(path, inputs, 1),
                "openvino": with_openvino(path, inputs, 1),
                "torch": lambda model=model: model(x),
            }
            for values in ("float32", "float16", "int8"):
                fast = sc.compile(model, x, threads=1, values=values)
                calls[values] = lambda fast=fast: fast(x)
            rows.append({"sparsity": percent, **ratios(calls, given.rounds)})
            print(rows[-1], flush=True)
    if not given.quick:
        record("engine_vectors", rows, out=given.out, size=given.size, rounds=given.rounds)


def ratios(calls: dict[str, Any], rounds: int) -> dict[str, float]:
    """How many times faster than the better of ONNX Runtime and OpenVINO, and the milliseconds."""
    samples = rounds_in_turns(calls, rounds, 7)
    best = [min(pair) for pair in zip(samples["onnxruntime"], samples["openvino"], strict=True)]
    found = {f"{name} ms": 1e3 * statistics.median(times) for name, times in samples.items()}
    for name in ("float32", "float16", "int8"):
        found[name] = statistics.median(b / t for b, t in zip(best, samples[name], strict=True))
    return found


if __name__ == "__main__":
    main()
