"""Second order on real networks, magnitude, random and activation norms beside it, one network at a time.

    python -m benchmarks.second_order lenet       LeNet-300-100 of the L-OBS authors, unlabelled calibration; retraining
    python -m benchmarks.second_order lenet_5     LeNet-5, the same
    python -m benchmarks.second_order mlp         784-40-20-10: network-wide and layer-wise, one-shot (--checkpoint for another one)
    python -m benchmarks.second_order resnet20    CIFAR-10, block convolutions only, batch norms refreshed; resnet56 too
    python -m benchmarks.second_order stories     stories260k, perplexity on the last 100 stories
    python -m benchmarks.second_order minilm      MiniLM, Spearman's correlation on STS-B (needs tokenizers)
    python -m benchmarks.second_order smollm      SmolLM2-135M, perplexity on 16 windows of the second half of WikiText-2, calibration from the first
    python -m benchmarks.second_order speed       one layer at 50 % from a ready Hessian, by width; ResNet-50 whole (needs torchvision)
    python -m benchmarks.second_order table       writes ``benchmarks/second_order.md``

Each case is a row of ``results/second_order_<network>.json``, written as soon as it is measured; a case that is there is not run again.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import WEIGHTS
from benchmarks.record import options, record, timed
from benchmarks.second_order import language, speed, table, vision
from benchmarks.second_order.cases import Bench

NETWORKS: dict[str, Callable[[Any], Bench]] = {
    "lenet": vision.lenet,
    "lenet_5": vision.lenet_5,
    "mlp": vision.mlp,
    "resnet20": partial(vision.resnet, 20),
    "resnet56": partial(vision.resnet, 56),
    "stories": language.stories,
    "minilm": language.minilm,
    "smollm": language.smollm,
}
SPEED = (
    ("layer of 1024 x 1024", partial(speed.layer, 1024)),
    ("layer of 2048 x 2048", partial(speed.layer, 2048)),
    ("layer of 4096 x 4096", partial(speed.layer, 4096)),
    ("ResNet-50, 32 images", speed.resnet50),
)


def main() -> None:
    """Measure one network."""
    parser = options(__doc__)
    parser.add_argument("network", choices=[*NETWORKS, "speed", "table"])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--folder", type=Path, help="where finished blocks are kept, to take up a run that was killed")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    if args.network == "table":
        table.write(args.out)
        return
    torch.set_num_threads(1)
    name = f"second_order_{args.network}"
    file = args.out / f"{name}.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    done = {(row["level"], row["method"]) for row in rows}
    for row in measured(args, done):
        rows.append(row)
        print(row, flush=True)
        if not args.quick:
            record(name, rows, out=args.out)


def measured(args: Any, done: set[tuple[str, str]]) -> Any:
    """The rows that are not there yet."""
    if args.network == "speed":
        yield from (work() for level, work in SPEED if args.only in level and (level, "columns") not in done)
        return
    model, judge, cases = NETWORKS[args.network](args)
    if ("", "dense") not in done:
        yield {"level": "", "method": "dense", "score": round(judge(model), 2)}
    for level, method, work in cases:
        if args.only not in f"{level} {method}" or (level, method) in done:
            continue
        pruned, seconds = timed(work)
        yield {
            "level": level,
            "method": method,
            "score": round(judge(pruned.model), 2),
            "sparsity": round(pruned.masks.sparsity, 6),
            "seconds": round(seconds, 1),
        }


if __name__ == "__main__":
    main()
