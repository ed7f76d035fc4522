"""Save and load beside plain safetensors, in the same run: seconds per GB of dense weights, file size, peak memory.

Every repeat measures all ways one after the other, so that a busy moment of the machine hits all of them; the median counts.
``plain`` is ``safetensors.torch.save_file`` and ``load_file`` + ``load_state_dict``; ``plain+fsync`` waits for the disk, as
`secateur.save` does. Files are read from the page cache. Peak memory is the growth of the resident set, which for reading
includes the pages of the mapped file. ``cpu`` is user and system time of the process: what the work costs when the machine has
other things to do (its load average is recorded).

    python -m benchmarks.storage              about two minutes, 5 GB of free memory and disk
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateur as sc
from benchmarks.record import options, record
from secateur.packing.pack import packed_nbytes
from secateur.storage import inspect, load, save

Way = Callable[[], object]


def net(layers: int, width: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width, bias=True) for _ in range(layers)))


def fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def peak(way: Way) -> int:
    """Growth of the resident set while ``way`` runs, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    way()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def ways(model: nn.Module, fresh: nn.Module, folder: Path) -> dict[str, Way]:
    ours, plain = folder / "ours.safetensors", folder / "plain.safetensors"

    def save_plain() -> None:
        save_file(model.state_dict(), plain)

    def save_plain_fsync() -> None:
        save_plain()
        fsync(plain)

    def load_plain() -> None:
        fresh.load_state_dict(load_file(plain))

    return {
        "save plain": save_plain,
        "save plain+fsync": save_plain_fsync,
        "save secateur": lambda: save(model, ours),
        "load plain": load_plain,
        "load secateur": lambda: load(ours, fresh),
        "size only": lambda: packed_nbytes(model.state_dict(), model=type(model).__name__),
    }


def measure(model: nn.Module, fresh: nn.Module, repeats: int) -> dict[str, Any]:
    gigabytes = sum(p.nbytes for p in model.state_dict().values()) / 1e9
    with tempfile.TemporaryDirectory() as folder:
        doing = ways(model, fresh, Path(folder))
        peaks = {name: peak(way) for name, way in doing.items()}
        seconds: dict[str, list[float]] = {name: [] for name in doing}
        of_cpu: dict[str, list[float]] = {name: [] for name in doing}
        for _ in range(repeats):
            for name, way in doing.items():
                if name.startswith("save"):  # onto an empty spot: freeing an old gigabyte is not the writer's time
                    (Path(folder) / ("ours" if "secateur" in name else "plain")).with_suffix(".safetensors").unlink()
                begun, cpu = time.perf_counter(), time.process_time()
                way()
                of_cpu[name].append((time.process_time() - cpu) / gigabytes)
                seconds[name].append((time.perf_counter() - begun) / gigabytes)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
        file = inspect(Path(folder) / "ours.safetensors")
    return {
        "gigabytes": gigabytes,
        "file_bytes": file.nbytes,
        "dense_bytes": file.dense_nbytes,
        "format": max(tensor.format for tensor in file.tensors if len(tensor.shape) > 1),
        "seconds_per_gb": {
            name: {"median": statistics.median(many), "low": min(many), "high": max(many)}
            for name, many in seconds.items()
        },
        "cpu_seconds_per_gb": {name: statistics.median(many) for name, many in of_cpu.items()},
        "load_average": os.getloadavg()[0],
        "peak_bytes_per_dense_byte": {name: peaks[name] / gigabytes / 1e9 for name in doing},
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    layers, width, repeats = (2, 512, 1) if chosen.quick else (chosen.layers, chosen.width, chosen.repeats)
    torch.manual_seed(0)
    rows = []
    for pruning in (0.0, 0.5, 0.8, 0.9, "2:4"):
        model, fresh = net(layers, width), net(layers, width)
        if isinstance(pruning, str):
            model = sc.prune(model, granularity=pruning).model
        elif pruning:
            model = sc.prune(model, sparsity=pruning, scope="layer").model
        row = {"pruning": pruning} | measure(model, fresh, repeats)
        rows.append(row)
        said = "  ".join(f"{name} {one['median']:.2f}" for name, one in row["seconds_per_gb"].items())
        print(f"{pruning!s:>4} {row['format']:8} {row['file_bytes'] / row['dense_bytes']:.3f}  {said}", flush=True)
        print("      cpu ", "  ".join(f"{n} {v:.2f}" for n, v in row["cpu_seconds_per_gb"].items()))
        print("     peak ", "  ".join(f"{n} {v:.2f}" for n, v in row["peak_bytes_per_dense_byte"].items()), flush=True)
        if not chosen.quick:  # row by row: an interrupted run keeps what it has
            record("storage", rows, out=chosen.out, unit="seconds per GB of dense weights, files in the page cache")


if __name__ == "__main__":
    main()
