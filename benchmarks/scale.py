"""Scale: planning global magnitude on random float32 weights, from 10 million to 1 billion, beside ``torch.nn.utils.prune``.

Every measurement runs in a process of its own, so its peak resident memory is that of this plan alone: the weights are made,
the memory is noted, the plan is timed, and the high-water mark is read. ``memory_ratio`` is (weights + what planning added at
its peak, masks included) / weights. ``cpu_seconds`` is the processor time of the same runs, for machines that have other work.

    python -m benchmarks.scale --sizes 1e7 1e8 3e8 1e9
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import secateur as sc
from benchmarks.data import ROOT
from benchmarks.record import options, record
from secateur.allocations.global_ import Global
from secateur.granularities.unstructured import Unstructured

SPARSITY = 0.9


def layer_sizes(total: int, split: str) -> list[tuple[int, int]]:
    """One tensor, or the matrices of a transformer: an embedding and blocks of attention and feed-forward weights."""
    if split == "one":
        return [(total // 1000, 1000)]
    width = max(64, round((total / (12 * 24 + 30)) ** 0.5 / 64) * 64)
    block = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    count = max(1, round((total - 30 * width * width) / (12 * width * width)))
    rows = max(1, (total - count * 12 * width * width) // width)
    return [(rows, width)] + block * count


def make_weights(total: int, split: str) -> dict[str, torch.Tensor]:
    """Normal weights whose scale falls with the width, as at initialisation and after training."""
    generator = torch.Generator().manual_seed(0)
    sizes = layer_sizes(total, split)
    return {
        f"layer{i}.weight": torch.empty(n, m).normal_(0, m**-0.5, generator=generator) for i, (n, m) in enumerate(sizes)
    }


def plan_ours(weights: dict[str, torch.Tensor]) -> int:
    """Global magnitude by Secateur; gives the number kept."""
    return sc.plan(sc.Scores(weights, each=torch.abs), Unstructured(), Global(sparsity=SPARSITY)).kept


def plan_torch(weights: dict[str, torch.Tensor]) -> int:
    """The same by ``torch.nn.utils.prune.global_unstructured``."""
    holders = []
    for weight in weights.values():
        holder = nn.Module()
        holder.weight = nn.Parameter(weight, requires_grad=False)
        holders.append(holder)
    torch_prune.global_unstructured(
        [(holder, "weight") for holder in holders], pruning_method=torch_prune.L1Unstructured, amount=SPARSITY
    )
    return sum(int(holder.weight_mask.count_nonzero()) for holder in holders)


PLANNERS: dict[str, Callable[[dict[str, torch.Tensor]], int]] = {
    "secateur": plan_ours,
    "torch.nn.utils.prune": plan_torch,
}


def high_water_bytes() -> int:
    """The peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_here(planner: str, total: int, split: str, threads: int, repeats: int) -> dict[str, Any]:
    """Measure in this process; seconds are the median of ``repeats``, memory is after all of them."""
    torch.set_num_threads(threads)
    PLANNERS[planner]({"warm": torch.randn(1000, 100)})
    weights = make_weights(total, split)
    size = sum(weight.nbytes for weight in weights.values())
    before, seconds, cpu_seconds = high_water_bytes(), [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        kept = PLANNERS[planner](weights)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    count = size // 4
    return {
        "planner": planner,
        "parameters": count,
        "split": split,
        "tensors": len(weights),
        "threads": threads,
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "cpu_seconds": statistics.median(cpu_seconds),
        "memory_ratio": (size + high_water_bytes() - before) / size,
        "process_peak_over_weights": high_water_bytes() / size,
        "kept": kept,
        "exact": kept == round((1 - SPARSITY) * count),
    }


def measure_apart(*what: object) -> dict[str, Any]:
    """`measure_here` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", *map(str, what)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {
            "planner": what[0],
            "parameters": what[1],
            "split": what[2],
            "failed": (done.stderr or "killed").strip()[-300:],
        }
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure every size and write ``results/scale.json`` after each."""
    parser = options(__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e7, 1e8, 3e8, 1e9])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="of Secateur; torch.nn.utils.prune runs once")
    parser.add_argument(
        "--torch-up-to",
        type=float,
        default=1e8,
        help="largest size for torch.nn.utils.prune (needs 15 times the weights)",
    )
    parser.add_argument(
        "--one", nargs=5, metavar=("PLANNER", "SIZE", "SPLIT", "THREADS", "REPEATS"), help="measure one here"
    )
    args = parser.parse_args()
    if args.one:
        planner, *numbers = args.one
        print(json.dumps(measure_here(planner, int(numbers[0]), numbers[1], int(numbers[2]), int(numbers[3]))))
        return
    rows = []
    for size in [1e6] if args.quick else args.sizes:
        for split in ("layers", "one"):
            for planner in PLANNERS:
                if planner != "secateur" and size > args.torch_up_to:
                    continue
                repeats = args.repeats if planner == "secateur" else 1
                rows.append(measure_apart(planner, int(size), split, args.threads, repeats))
                print(rows[-1], flush=True)
        if not args.quick:
            record("scale", rows, out=args.out, sparsity=SPARSITY)


if __name__ == "__main__":
    main()
