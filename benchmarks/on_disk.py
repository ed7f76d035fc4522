"""Memory of `sc.prune_on_disk`: checkpoints of more and more layers of 32 MB, and the most that the process itself held meanwhile.

Memory of the process itself is what is neither shared nor mapped from a file (RssAnon); pages of files are given up by the system when
it needs room. Each size runs in a process of its own. Linux only.

    python -m benchmarks.on_disk            about 15 minutes
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur as sc
from benchmarks.record import options, record
from benchmarks.tables import about, table

WIDTH = 1024
LAYERS = (8, 16, 32)


class Wide(nn.Linear):
    """A residual layer of 32 MB with a Hessian of 1024 x 1024."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)[:, :WIDTH]


def build(layers: int) -> nn.Module:
    return nn.Sequential(*[Wide(WIDTH, 8 * WIDTH) for _ in range(layers)])


def write(file: Path, layers: int) -> None:
    state = {f"{at}.weight": torch.randn(8 * WIDTH, WIDTH) / 50 for at in range(layers)}
    save_file(state | {f"{at}.bias": torch.zeros(8 * WIDTH) for at in range(layers)}, file)


def held() -> float:
    """Megabytes of the process itself."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@contextmanager
def watched() -> Iterator[list[float]]:
    """The most that is held meanwhile."""
    peak, over = [held()], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            peak[0] = max(peak[0], held())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def one(folder: Path, layers: int) -> dict[str, Any]:
    """A row, in a process of its own."""
    source, before, begun = folder / "in.safetensors", held(), time.perf_counter()
    task = sc.Task([torch.randn(64, WIDTH) for _ in range(2)])
    with watched() as peak:
        receipt = sc.prune_on_disk(
            lambda: build(layers),
            source,
            folder / "out.safetensors",
            task=task,
            sparsity=0.5,
            scope="layer",
            solver="activation",
        )
    return {
        "layers": layers,
        "megabytes": source.stat().st_size / 2**20,
        "held_before": before,
        "held_most": peak[0],
        "nonzeros": receipt.after.nonzeros / receipt.before.nonzeros,
        "seconds": time.perf_counter() - begun,
    }


def section(found: dict[str, Any]) -> str:
    """The page's table."""
    body = [
        [
            f"{r['megabytes']:,.0f}",
            f"{r['held_before']:,.0f}",
            f"{r['held_most']:,.0f}",
            f"{r['nonzeros']:.1%}",
            f"{r['seconds']:,.0f}",
        ]
        for r in found["rows"]
    ]
    return (
        "## A checkpoint larger than memory\n\n`sc.prune_on_disk`, half of every layer, in layers of 32 MB: what the process itself holds "
        "(RssAnon) before and at most, in MB.\n\n"
        + table(["checkpoint, MB", "held before", "held at most", "weights left", "seconds"], body)
        + f"\n\n{about(found)}"
    )


def main() -> None:
    """Measure and record."""
    parser = options(__doc__)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "LAYERS"), help="one row, printed as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(one(Path(args.one[0]), int(args.one[1]))))
        return
    rows = []
    for layers in LAYERS[:1] if args.quick else LAYERS:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "in.safetensors", layers)
            command = [sys.executable, "-m", "benchmarks.on_disk", "--one", folder, str(layers)]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append(json.loads(found.splitlines()[-1]))
        print(rows[-1], flush=True)
        if not args.quick:
            record("on_disk", rows, out=args.out)


if __name__ == "__main__":
    main()
