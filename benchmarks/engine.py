"""The sparse engine against dense ONNX Runtime and OpenVINO, in turns.

    python -m benchmarks.engine                     # all rows of benchmarks/engine.md: about an hour
    python -m benchmarks.engine --kinds resnet50 --threads 1 --batch 1      # these again; the file keeps the others
    python -m benchmarks.engine --deepsparse FOLDER/bin/python      # and DeepSparse, from an environment that has it

Every engine lives in a process of its own. In each round each runs a few times, one after the other; a ratio is taken within a round, and
the median of the rounds is reported. So a machine that is shared slows all of them alike. Dense engines do not look at weights, so one
process of each serves all sparsities of a network. `cpu` is the same ratio of processor time, which leaves out the moments when somebody
else had the core (one thread only). Needs torchvision, onnx, onnxscript, onnxruntime and openvino.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.record import commit, options, record

DENSE = ("onnxruntime", "openvino")
COLUMNS = (*DENSE, "onnxruntime int8", "deepsparse")
KINDS = {"resnet50": ("80", "90", "95", "90-4x1"), "mobilenet_v2": ("85", "90"), "bert": ("80", "90", "95")}
SERVER = """
import sys, numpy, deepsparse
path, example, batch, threads = sys.argv[1:]
engine, x = deepsparse.Engine(path, batch_size=int(batch), num_cores=int(threads)), numpy.load(example)
for _ in sys.stdin:
    engine.run([x])
    print("ran", flush=True)
"""


def main() -> None:
    """Run and record."""
    parser = options(__doc__)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--deepsparse", default="", help="a Python that has DeepSparse (AVX2 or later, Linux)")
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    found = given.out / "engine.json"
    rows: list[dict[str, Any]] = json.loads(found.read_text())["rows"] if found.exists() else []
    for threads in given.threads:
        for batch in given.batch:
            for kind in given.kinds:
                fresh = measured(kind, batch, threads, 2 if given.quick else given.rounds, given.deepsparse)
                print(*map(said, fresh), sep="\n", flush=True)
                rows = [row for row in rows if not any(map(partial(same, row), fresh))] + fresh
                if not given.quick:
                    record("engine", sorted(rows, key=order), out=given.out)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one row takes the other's place."""
    return all(one[key] == other[key] for key in ("net", "threads", "batch"))


def order(row: dict[str, Any]) -> tuple[Any, ...]:
    """Where it stands in the file."""
    kind, zeros = row["net"].split("-", 1)
    return row["threads"], row["batch"], list(KINDS).index(kind), KINDS[kind].index(zeros)


def measured(kind: str, batch: int, threads: int, rounds: int, deepsparse: str) -> list[dict[str, Any]]:
    """Ratios of one network at all its sparsities."""
    context = multiprocessing.get_context("spawn")
    nets = [f"{kind}-{zeros}" for zeros in KINDS[kind]]
    wanted = [("secateur", net) for net in nets] + [(engine, nets[0]) for engine in COLUMNS[:3]]
    wanted += [("deepsparse", net) for net in nets if deepsparse]
    exporting, building = context.Lock(), context.Semaphore(2)
    with tempfile.TemporaryDirectory() as folder:
        workers = {}
        for engine, net in wanted:
            here, there = context.Pipe()
            job = (there, engine, net, batch, threads, folder, deepsparse, exporting, building)
            process = context.Process(target=work, args=job)
            process.start()
            workers[engine, net] = (process, here)
        ready = {key: pipe.recv() for key, (_, pipe) in workers.items()}
        samples: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in workers}
        for _ in range(rounds):
            for key, (_, pipe) in workers.items():
                if ready[key]["error"] is None:
                    pipe.send(3 if batch == 1 else 1)
                    samples[key].append(pipe.recv())
                    time.sleep(0.02)
        for process, pipe in workers.values():
            pipe.send(0)
            process.join(10)
    rows = []
    for net in nets:
        row: dict[str, Any] = {"net": net, "batch": batch, "threads": threads, "rounds": rounds, "commit": commit()}
        ours = samples["secateur", net]
        row |= {"error": ready["secateur", net]["difference"], "ms": 1e3 * statistics.median(t for t, _ in ours)}
        for engine in COLUMNS:
            key = (engine, net if engine == "deepsparse" else nets[0])
            if key in workers:
                row[engine] = {"failed": ready[key]["error"]} if ready[key]["error"] else compared(ours, samples[key])
        dense = [row[engine] for engine in DENSE if "ms" in row[engine]]
        row["better dense"] = min(dense, key=lambda cell: cell["ratio"])
        rows.append(row)
    return rows


def compared(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> dict[str, float]:
    """How many times faster: the median of the rounds, by the shortest times, by processor time."""
    return {
        "ms": 1e3 * statistics.median(t for t, _ in theirs),
        "ratio": statistics.median(b / a for (a, _), (b, _) in zip(ours, theirs, strict=True)),
        "least": min(t for t, _ in theirs) / min(t for t, _ in ours),
        "cpu": statistics.median(b / a for (_, a), (_, b) in zip(ours, theirs, strict=True)),
    }


def work(
    pipe: Any,
    engine: str,
    net: str,
    batch: int,
    threads: int,
    folder: str,
    deepsparse: str,
    exporting: Any,
    building: Any,
) -> None:
    """One engine: runs when it is told to, answers with the median wall time and processor time of a run."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with building:
            run, difference = built(engine, net, batch, threads, Path(folder), exporting, deepsparse)
            for _ in range(3):
                run()
    except Exception as error:  # noqa: BLE001 - an engine that is not installed is a column that is missing
        pipe.send({"error": f"{type(error).__name__}: {str(error)[:200]}", "difference": None})
        pipe.recv()
        return
    pipe.send({"error": None, "difference": difference})
    while count := pipe.recv():
        walls, cpus = [], []
        if count > 1:
            run()
        for _ in range(count):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        pipe.send((statistics.median(walls), statistics.median(cpus)))


def built(
    engine: str, net: str, batch: int, threads: int, folder: Path, exporting: Any, deepsparse: str
) -> tuple[Any, float | None]:
    """A function that runs ``net`` once, and the largest relative difference from torch (of ours)."""
    import torch

    from benchmarks.engine_nets import example_of, network

    torch.set_num_threads(threads)
    model, x = network(net), example_of(net, batch)
    if engine == "secateur":
        import secateur as sc

        fast = sc.compile(model, x, threads=threads)
        with torch.no_grad():
            expected = model(x)
        return lambda: fast(x), float((fast(x) - expected).abs().max() / expected.abs().max())
    if engine == "deepsparse":
        return with_deepsparse(model, x, threads, folder / f"{net}.onnx", deepsparse), None
    path = folder / "net.onnx"
    with exporting:
        if not path.exists():
            exported(model, (x,), path)
    inputs = {"x": x.numpy()}
    if engine == "openvino":
        return with_openvino(path, inputs, threads), None
    return with_onnxruntime(path, inputs, threads, int8="int8" in engine), None


def with_deepsparse(model: Any, x: Any, threads: int, path: Path, python: str) -> Any:
    """DeepSparse 1.8, which reads files of older versions only, in the environment that has it."""
    import numpy
    import torch

    torch.onnx.export(model, (x,), path, dynamo=False, opset_version=14)
    numpy.save(example := path.with_suffix(".npy"), x.numpy())
    words = [python, "-c", SERVER, str(path), str(example), str(x.shape[0]), str(threads)]
    environment = os.environ | {"NM_DISABLE_ANALYTICS": "1", "PYTHONPATH": ""}
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run() -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write("\n")
        server.stdin.flush()
        while (line := server.stdout.readline()) != "ran\n":
            if not line:
                raise RuntimeError(f"DeepSparse ended with {server.wait()}")

    return run


def with_onnxruntime(path: Path, inputs: dict[str, Any], threads: int, *, int8: bool = False) -> Any:
    """ONNX Runtime, dense; int8 as its quantisation tools make it: per channel, calibrated on the example for images, dynamic for text."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    file = quantised(path, inputs) if int8 else path
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def quantised(path: Path, inputs: dict[str, Any]) -> Path:
    """The int8 file beside ``path``."""
    from onnxruntime import quantization as q

    made = path.with_name("int8.onnx")
    if all(x.ndim != 4 or x.shape[1] != 3 for x in inputs.values()):
        q.quantize_dynamic(path, made, weight_type=q.QuantType.QInt8, per_channel=True)
        return made

    class Once(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [inputs]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    prepared = path.with_name("prepared.onnx")
    q.shape_inference.quant_pre_process(str(path), str(prepared))
    how = {"quant_format": q.QuantFormat.QDQ, "per_channel": True, "weight_type": q.QuantType.QInt8}
    q.quantize_static(str(prepared), str(made), Once(), **how)
    return made


def with_openvino(path: Path, inputs: dict[str, Any], threads: int) -> Any:
    """OpenVINO, dense, for latency."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda: request.infer(inputs, share_inputs=True)


def exported(model: Any, inputs: tuple[Any, ...], path: Path) -> dict[str, Any]:
    """Write the ONNX file; the inputs by name, as numpy arrays."""
    import torch

    names = ["x", "y", "z"][: len(inputs)]
    torch.onnx.export(model, inputs, path, input_names=names, dynamo=True, external_data=False, verbose=False)
    return {name: x.numpy() for name, x in zip(names, inputs, strict=True)}


def said(row: dict[str, Any]) -> str:
    """One line."""
    columns = [
        f"{e} {row[e].get('failed') or round(row[e]['ratio'], 2)}" for e in (*COLUMNS, "better dense") if e in row
    ]
    start = f"{row['net']} batch {row['batch']} threads {row['threads']}: {row['ms']:.1f} ms, off by {row['error']:.1g}"
    return f"{start}; times as fast as {', '.join(columns)}"


if __name__ == "__main__":
    main()
