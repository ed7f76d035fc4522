"""From which sparsity on leaving zeros out pays, for single layers of every kind; and what a served network takes of memory.

    python -m benchmarks.engine_layers

Each layer alone, in float32 on one thread, in turns: the engine with single zeros at growing sparsity, its own dense product, dense ONNX
Runtime and dense OpenVINO. The break-even is where the time, a straight line between two sparsities, meets that of the better of the two.
Memory is that of a process which only serves: what it holds at its peak after loading and three calls, less what its imports hold. Needs
onnxruntime, openvino and torchvision.
"""

import copy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks.engine import exported, with_onnxruntime, with_openvino
from benchmarks.engine_nets import example_of, network
from benchmarks.record import options, record
from benchmarks.turns import rounds_in_turns

SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
SERVED = ("resnet50-90", "mobilenet_v2-90", "bert-90")
SERVE = """
import sys, numpy
kind, path, example = sys.argv[1:]
if kind == "secateur":
    import secateur_engine
else:
    import onnxruntime
def held(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1e3
x, before = numpy.load(example), held("VmRSS")
if kind == "secateur":
    model = secateur_engine.load(path, threads=1)
    run = lambda: model(x)
else:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    run = lambda: session.run(None, {"x": x})
for _ in range(3):
    run()
print(held("VmHWM") - before)
"""


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """A layer of every kind, with an input."""
    torch.manual_seed(0)
    return {
        "linear 768 to 3072, 128 tokens": (nn.Linear(768, 3072), torch.randn(1, 128, 768)),
        "linear 384 to 384, 16 tokens": (nn.Linear(384, 384), torch.randn(1, 16, 384)),
        "linear 1024 to 1024, one vector": (nn.Linear(1024, 1024), torch.randn(1, 1024)),
        "1×1 convolution, 64 to 256, 56×56": (nn.Conv2d(64, 256, 1), torch.randn(1, 64, 56, 56)),
        "1×1 convolution, 256 to 256, 14×14": (nn.Conv2d(256, 256, 1), torch.randn(1, 256, 14, 14)),
        "3×3 convolution, 128 to 128, 28×28": (nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 28, 28)),
        "3×3 convolution, 2 strides, 128 to 128, 56×56": (
            nn.Conv2d(128, 128, 3, 2, padding=1),
            torch.randn(1, 128, 56, 56),
        ),
        "3×3 convolution, 4 groups, 128 to 128, 28×28": (
            nn.Conv2d(128, 128, 3, padding=1, groups=4),
            torch.randn(1, 128, 28, 28),
        ),
        "4×4 transposed convolution, 128 to 64, 16×16": (
            nn.ConvTranspose2d(128, 64, 4, 2, 1),
            torch.randn(1, 128, 16, 16),
        ),
        "convolution of 3 in 1d, 256 to 256, 200 long": (nn.Conv1d(256, 256, 3, padding=1), torch.randn(1, 256, 200)),
        "LSTM 256, 32 steps": (nn.LSTM(256, 256, batch_first=True), torch.randn(1, 32, 256)),
    }


def main() -> None:
    """Run and record."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds, rows = 2 if given.quick else given.rounds, list[dict[str, Any]]()
    with torch.inference_mode():
        for name, (layer, x) in layers().items():
            rows.append({"layer": name, **measured(layer.eval(), x, rounds)})
            print(rows[-1], flush=True)
    served = [memory(net) for net in SERVED]
    print(served)
    if not given.quick:
        record("engine_layers", rows, out=given.out, rounds=given.rounds, served=served)


def measured(layer: nn.Module, x: Tensor, rounds: int) -> dict[str, Any]:
    """Milliseconds at every sparsity, those of the dense ones, and the break-even."""
    calls: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = exported(layer, (x,), path := Path(folder) / "net.onnx")
        calls |= {"onnxruntime": with_onnxruntime(path, inputs, 1), "openvino": with_openvino(path, inputs, 1)}
        calls["own dense"] = compiled(layer, x, 0.0, "dense")
        calls |= {f"{sparsity:g}": compiled(layer, x, sparsity, "1") for sparsity in SPARSITIES}
        samples = rounds_in_turns(calls, rounds, 5)
    least = {name: 1e3 * statistics.median(times) for name, times in samples.items()}
    dense = min(least["onnxruntime"], least["openvino"])
    return {"ms": least, "break-even": met(least, dense), "break-even with own dense": met(least, least["own dense"])}


def compiled(layer: nn.Module, x: Tensor, sparsity: float, form: str) -> Any:
    """A call of the layer with this share of its weights gone."""
    layer = copy.deepcopy(layer)
    if sparsity:
        for name, weight in layer.named_parameters():
            if "weight" in name:
                weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) >= sparsity)
    fast = sc.compile(layer, x, threads=1, form=form)
    fed = x.numpy()
    return lambda: fast(fed)


def met(ms: dict[str, float], dense: float) -> float | None:
    """The sparsity at which the time is ``dense``."""
    before = (SPARSITIES[0], ms["0"])
    if before[1] <= dense:
        return 0.0
    for sparsity in SPARSITIES[1:]:
        here = (sparsity, ms[f"{sparsity:g}"])
        if here[1] <= dense:
            return before[0] + (here[0] - before[0]) * (before[1] - dense) / (before[1] - here[1])
        before = here
    return None


def memory(net: str) -> dict[str, Any]:
    """Megabytes of the files, and of the processes that serve them."""
    model, x = network(net), example_of(net, 1)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"secateur": Path(folder) / "net.sc", "onnxruntime": Path(folder) / "net.onnx"}
        sc.compile(model, x, threads=1).save(paths["secateur"])
        exported(model, (x,), paths["onnxruntime"])
        numpy.save(example := Path(folder) / "x.npy", x.numpy())
        row: dict[str, Any] = {"net": net}
        for kind, path in paths.items():
            words = [sys.executable, "-c", SERVE, kind, str(path), str(example)]
            said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            row |= {f"{kind} file MB": path.stat().st_size / 1e6, f"{kind} MB": float(said)}
    return row


if __name__ == "__main__":
    main()
