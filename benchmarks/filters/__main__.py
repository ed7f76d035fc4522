"""Every criterion of channels on ResNet-20 and ResNet-56 (CIFAR-10), EfficientNet-Lite0 (ImageNet sample) and MiniLM (STS-B).

For each network and budget of multiply-accumulates: the score as it is cut, with new batch-norm statistics, and after a short
training that is the same for all rows (three seeds, at the smaller budget). Beside our criteria stand random channels, the same fraction of every
group (uniform magnitude), and Torch-Pruning 1.6.1, whose ratio is searched until its network costs as much.

    python -m benchmarks.filters --weights ~/.cache/secateur-weights --only resnet20        about an hour for this one, twelve for all
    python -m benchmarks.filters --short                fewer steps and cases, three hours of one core; recorded apart
    python -m benchmarks.filters --table [--short]
"""

import argparse
import copy
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from benchmarks.data import WEIGHTS
from benchmarks.filters import networks, peer, table
from benchmarks.models.cases import fetch
from benchmarks.record import options, record

NAMES = ("resnet20", "minilm", "efficientnet_lite0", "resnet56")
GLOBAL = (
    "random", "magnitude", "filter_norm", "fpgm", "bn_scale", "activation", "taylor", "taylor_map", "taylor_gate", "fisher",
    "reconstruction",
)  # fmt: skip
REPAIRED = (
    ("random", "layer"),
    ("magnitude", "curves"),
    ("taylor_map", "global"),
    ("taylor_map", "curves"),
    ("reconstruction", "global"),
)
CASES = (
    *((name, "global", False) for name in GLOBAL),
    ("random", "layer", False),
    ("magnitude", "layer", False),
    ("magnitude", "curves", False),
    *((name, scope, True) for name, scope in REPAIRED),
)
PEERS = tuple(
    (f"torch_pruning {word}", scope, False) for word in ("magnitude", "taylor") for scope in ("global", "layer")
)
#: every criterion once, the least expensive ways beside them, and two rows of the peer
SHORT = (
    *((name, "global", name == "reconstruction") for name in GLOBAL),
    ("magnitude", "layer", False),
    ("magnitude", "curves", True),
    ("taylor_map", "global", True),
    PEERS[1],
    PEERS[2],
)


def task_of(network: networks.Network) -> sc.Task:
    return sc.Task(list(network.calibration), loss=network.loss)


def pruned(network: networks.Network, case: tuple[str, str, bool], share: float, curves: dict[str, Any]) -> nn.Module:
    """The narrowed network of a row; curves are measured once a network."""
    method, scope, repair = case
    if scope == "curves" and method not in curves:
        curves[method] = sc.sensitivity(
            network.model,
            task_of(network),
            granularity="channel",
            method=method,
            metric="loss",
            example_inputs=network.example,
            sparsities=(0.25, 0.5, 0.75),
        )
    return sc.prune(
        network.model,
        method,
        granularity="channel",
        budget=f"macs:{100 * share:g}%",
        scope=curves[method] if scope == "curves" else scope,
        repair=repair,
        task=task_of(network),
        example_inputs=network.example,
    ).model


def judged(network: networks.Network, model: nn.Module) -> dict[str, float]:
    """As it is, and with new batch-norm statistics where there are images enough."""
    found = {"score": network.judge(model)}
    if not network.frozen and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        fresh = copy.deepcopy(model)
        sc.recalibrate_(fresh, [b[0] for b in network.calibration])
        found["recalibrated"] = network.judge(fresh)
    return found


def trained(network: networks.Network, model: nn.Module, seed: int) -> float:
    """The score after the short training, from the network as it was cut."""
    student = copy.deepcopy(model).train()
    if network.frozen:
        for module in student.modules():
            module.train(not isinstance(module, nn.modules.batchnorm._BatchNorm))
    batches = list(network.training(seed))
    if network.head:
        optimizer: torch.optim.Optimizer = torch.optim.SGD(student.parameters(), network.lr, 0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.AdamW(student.parameters(), network.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.lr, total_steps=len(batches) + 1, pct_start=0.1)
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        network.loss(student, batch).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.judge(student.eval())


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells rows apart."""
    return tuple(row[word] for word in ("network", "method", "scope", "repair", "share"))


def rows_of(
    name: str, network: networks.Network, seeds: int, done: set[tuple[Any, ...]], cases: Sequence[tuple[str, str, bool]]
) -> Iterator[dict[str, Any]]:
    """The dense row and those of the ``cases``, without those that are done."""
    dense = {"network": name, "method": "dense", "scope": "", "repair": False, "share": 1.0, "macs": 1.0}
    if key(dense) not in done:
        yield dense | judged(network, network.model)
    whole, known = sc.profile(network.model, network.example).macs, dict[str, Any]()
    for case in cases:
        for share in network.shares:
            row = {"network": name, "method": case[0], "scope": case[1], "repair": case[2], "share": share}
            if key(row) in done:
                continue
            begun = time.perf_counter()
            try:
                how = peer.pruned if case[0].startswith("torch_pruning") else pruned
                thin = how(network, case, share, known)
            except Exception as error:  # noqa: BLE001  what fails is a row too
                yield row | {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
                break
            row |= {"seconds": time.perf_counter() - begun, "macs": sc.profile(thin, network.example).macs / whole}
            row |= {
                "params": sum(p.numel() for p in thin.parameters()) / sum(p.numel() for p in network.model.parameters())
            }
            row |= judged(network, thin)
            if share == network.shares[-1]:
                row["trained"] = [trained(network, thin, seed) for seed in range(seeds)]
            yield row


def parse() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--only", default=",".join(NAMES), help="networks, separated by commas")
    parser.add_argument(
        "--methods",
        default="",
        help="only these, separated by commas; the rows are to be compared with the record: use --out",
    )
    parser.add_argument("--short", action="store_true", help="fewer steps and cases; recorded as filters_short.json")
    parser.add_argument("--keep", action="store_true", help="go on: measure only the rows that are not there yet")
    parser.add_argument("--table", action="store_true", help="print the tables of the results")
    return parser.parse_args()


def main() -> None:
    """Measure and record; rows of networks that are not asked for stay."""
    args = parse()
    into = "filters_short" if args.short else "filters"
    path = args.out / f"{into}.json"
    if args.table:
        print(table.section(json.loads(path.read_text())))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    effort, seeds = ("quick", 1) if args.quick else ("short" if args.short else "whole", args.seeds)
    methods = set(filter(None, args.methods.split(",")))
    cases = [case for case in (SHORT if args.short else (*CASES, *PEERS)) if not methods or case[0] in methods]
    for name in args.only.split(","):
        if not name.startswith("resnet"):
            fetch(args.weights)
        rows = [row for row in rows if args.keep or row["network"] != name]
        network = networks.make(name, args.weights, effort=effort)
        for row in rows_of(name, network, seeds, {key(row) for row in rows}, cases):
            rows.append(row)
            print({k: v for k, v in row.items() if k != "network"}, flush=True)
            if not args.quick:
                record(into, rows, out=args.out, effort=effort)


if __name__ == "__main__":
    main()
