"""What stripes save: the engine with and without them, in one process, in turns, on randomly pruned networks.

    python -m benchmarks.engine_stripes

`memory` is what one call needs beside the weights. Needs torchvision.
"""

import statistics
from typing import Any

import torch

import secateur as sc
from benchmarks.engine_nets import example_of, network
from benchmarks.record import options, record
from benchmarks.turns import rounds_in_turns

ROWS = (("resnet50-90", 1), ("resnet50-90", 16), ("mobilenet_v2-85", 1), ("mobilenet_v2-85", 16))


def main() -> None:
    """Run and record."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for net, batch in ROWS:
        rows.append(measured(net, batch, 2 if given.quick else given.rounds))
        print(rows[-1], flush=True)
    if not given.quick:
        record("engine_stripes", rows, out=given.out, rounds=given.rounds)


def measured(net: str, batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds, the median of the rounds' ratios, and megabytes."""
    model, x = network(net), example_of(net, batch)
    compiled = {name: sc.compile(model, x, threads=1, stripes=name == "with") for name in ("without", "with")}
    calls = {name: lambda one=one: one(x.numpy()) for name, one in compiled.items()}
    samples = rounds_in_turns(calls, rounds, 3 if batch == 1 else 1)
    row: dict[str, Any] = {"net": net, "batch": batch}
    for name, one in compiled.items():
        assert one.engine is not None
        said = one.engine.programs[0].said
        row[f"{name} ms"] = round(1e3 * statistics.median(samples[name]), 2)
        row[f"{name} MB"] = round(4e-6 * (said["arena"] + said["local"]), 1)
    pairs = zip(samples["without"], samples["with"], strict=True)
    return row | {"times as fast": round(statistics.median(a / b for a, b in pairs), 2)}


if __name__ == "__main__":
    main()
