"""The sparse engine against dense ONNX Runtime and OpenVINO, in turns.

    python -m benchmarks.engine                     # all rows of benchmarks/engine.md: about half an hour
    python -m benchmarks.engine --nets resnet50-90 --threads 1 --rounds 12

Every engine lives in a process of its own, with the same pruned weights. In each round each runs a few times, one after the other; a
ratio is taken within a round, and the median of the rounds is reported. So a machine that is shared slows all of them alike.
`cpu` is the same ratio of processor time, which leaves out the moments when somebody else had the core (one thread only).
Needs torchvision, onnx, onnxscript, onnxruntime and openvino.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import options, record

ENGINES = ("secateur", "onnxruntime", "onnxruntime int8", "openvino")
DENSE = ("onnxruntime", "openvino")
ROWS = [
    ("resnet50-80", 1), ("resnet50-90", 1), ("resnet50-95", 1), ("resnet50-90-4x1", 1), ("mobilenet_v2-85", 1), ("mobilenet_v2-90", 1),
    ("bert-80", 1), ("bert-90", 1), ("bert-95", 1), ("resnet50-90", 16), ("mobilenet_v2-85", 16), ("bert-90", 16),
]  # fmt: skip


def main() -> None:
    """Run and record."""
    parser = options(__doc__)
    parser.add_argument("--nets", nargs="*", help="rows to run, e.g. resnet50-90 bert-95 (default: all)")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="*", help="only these batch sizes")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--name", default="engine")
    given = parser.parse_args()
    rows = []
    for threads in given.threads:
        for net, batch in ROWS:
            if (given.nets and net not in given.nets) or (given.batch and batch not in given.batch):
                continue
            if batch > 1 and threads > 1:
                continue
            rows.append(row(net, batch, threads, given.engines, 2 if given.quick else given.rounds))
            print(said(rows[-1]), flush=True)
            if not given.quick:
                record(given.name, rows, out=given.out, rounds=given.rounds)


def row(net: str, batch: int, threads: int, engines: list[str], rounds: int) -> dict[str, Any]:
    """Ratios of one network."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        workers = {}
        for engine in engines:  # built one after the other
            here, there = context.Pipe()
            process = context.Process(target=work, args=(there, engine, net, batch, threads, folder), daemon=True)
            process.start()
            workers[engine] = (process, here, here.recv())
        samples: dict[str, list[tuple[float, float]]] = {engine: [] for engine in engines}
        for _ in range(rounds):
            for engine, (_, pipe, ready) in workers.items():
                if ready["error"] is None:
                    pipe.send(3 if batch == 1 else 1)
                    samples[engine].append(pipe.recv())
                    time.sleep(0.02)
        for process, pipe, _ in workers.values():
            pipe.send(0)
            process.join(10)
    found: dict[str, Any] = {"net": net, "batch": batch, "threads": threads, "rounds": rounds}
    found["error"] = workers["secateur"][2]["difference"]
    for engine, (_, _, ready) in workers.items():
        if ready["error"] is not None:
            found[engine] = {"failed": ready["error"]}
            continue
        ours, theirs = samples["secateur"], samples[engine]
        found[engine] = {
            "ms": 1e3 * statistics.median(t for t, _ in theirs),
            "ratio": statistics.median(b / a for (a, _), (b, _) in zip(ours, theirs, strict=True)),
            "least": min(t for t, _ in theirs) / min(t for t, _ in ours),
            "cpu": statistics.median(b / a for (_, a), (_, b) in zip(ours, theirs, strict=True)),
        }
    dense = [found[e] for e in DENSE if e in found and "ratio" in found[e]]
    if dense:
        found["against the better dense"] = {key: min(d[key] for d in dense) for key in ("ratio", "least", "cpu")}
    return found


def work(pipe: Any, engine: str, net: str, batch: int, threads: int, folder: str) -> None:
    """One engine: runs when it is told to, answers with the median wall time and processor time of a run."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        run, difference = built(engine, net, batch, threads, Path(folder))
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


def built(engine: str, net: str, batch: int, threads: int, folder: Path) -> tuple[Any, float | None]:
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
    if engine == "torch":
        model = model.to(memory_format=torch.channels_last) if x.dim() == 4 else model
        fed = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
        grad = torch.inference_mode(mode=True)
        grad.__enter__()
        return lambda: model(fed), None
    path = folder / "net.onnx"
    if not path.exists():
        torch.onnx.export(
            model, (x,), path, input_names=["x"], output_names=["y"], dynamo=True, external_data=False, verbose=False
        )
    return (with_openvino if engine == "openvino" else with_onnxruntime)(
        path, x.numpy(), threads, int8="int8" in engine
    ), None


def with_onnxruntime(path: Path, x: Any, threads: int, *, int8: bool) -> Any:
    """ONNX Runtime, dense; int8 as its quantisation tools make it: per channel, calibrated on the example for images, dynamic for text."""
    import onnxruntime

    if int8:
        path = quantised(path, x)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def quantised(path: Path, x: Any) -> Path:
    """The int8 file beside ``path``."""
    from onnxruntime import quantization as q

    made = path.with_name("int8.onnx")
    if x.ndim == 3:
        q.quantize_dynamic(path, made, weight_type=q.QuantType.QInt8, per_channel=True)
        return made

    class Once(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": x}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    prepared = path.with_name("prepared.onnx")
    q.shape_inference.quant_pre_process(str(path), str(prepared))
    q.quantize_static(
        str(prepared),
        str(made),
        Once(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        weight_type=q.QuantType.QInt8,
    )
    return made


def with_openvino(path: Path, x: Any, threads: int, *, int8: bool) -> Any:
    """OpenVINO, dense, for latency."""
    import openvino

    del int8
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda: request.infer({0: x}, share_inputs=True)


def said(row: dict[str, Any]) -> str:
    """One line."""
    columns = [
        f"{e} {row[e].get('ratio', float('nan')):.2f} ({row[e].get('least', float('nan')):.2f}, cpu {row[e].get('cpu', float('nan')):.2f})"
        for e in row
        if e in ENGINES
    ]
    failed = [f"{e}: {row[e]['failed']}" for e in row if e in ENGINES and "failed" in row[e]]
    return f"{row['net']} batch {row['batch']} threads {row['threads']} err {row['error']}: " + "; ".join(
        [*columns, *failed]
    )


if __name__ == "__main__":
    main()
