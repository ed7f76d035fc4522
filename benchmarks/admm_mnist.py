"""ADMM on LeNet-5 (430,500 weights) and LeNet-300-100, beside gradual magnitude and gradual random pruning of as many steps.

Every row of a seed begins at the same dense network and takes the same number of optimizer steps, with the same batches, the same
learning rates and the same teacher (the dense network); ADMM spends the first part of them on its iterations and the rest on masked
retraining, the gradual ones tighten the masks over the first part. Every number is the test accuracy after the last step.

    python -m benchmarks.admm_mnist --network lenet_5 --keep 6050
    python -m benchmarks.admm_mnist --network lenet_5 --keep 1750 --stages 0.9 0.97 0.985 0.992
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from benchmarks import nets
from benchmarks.data import Split, load_mnist
from benchmarks.record import options, record
from benchmarks.training import accuracy, each_batch, warped
from secateur.criteria.random import Random

MAKE = {"lenet_5": nets.make_lenet_5, "lenet_300_100": nets.make_lenet_300_100}
BATCH = 64


def shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each batch moved by up to two pixels: so the training does not only learn the 60,000 by heart."""
    dx, dy = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(x, (dy, dx), (2, 3))


AUGMENT = {"": lambda x, _: x, "shifts": shifted, "warps": warped}


def fit(
    model: nn.Module,
    data: Split,
    *,
    epochs: float,
    seed: int,
    lr: float,
    begin: Any = None,
    cut: float = 0.0,
    teacher: nn.Module | None = None,
    augment: str = "shifts",
) -> Any:
    """Train with Adam; the rate is constant up to ``cut`` of the steps and then falls as a cosine. Returns the run."""
    total = int(epochs * (len(data.x_train) // BATCH))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    run = begin(model, optimizer, total) if begin else None
    loss = (lambda m, b: F.cross_entropy(m(b[0]), b[1])) if teacher is None else _taught(teacher)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step, (x, y) in enumerate(each_batch(data, math.ceil(epochs), BATCH, generator)):
        if step == total:
            break
        done = max(0.0, step / total - cut) / (1 - cut)
        optimizer.param_groups[0]["lr"] = lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        moved = AUGMENT[augment](x, generator)
        optimizer.zero_grad(set_to_none=True)
        value = loss(model, (moved.contiguous(memory_format=torch.channels_last), y))
        (value + run.penalty() if run is not None else value).backward()
        optimizer.step()
        if run is not None:
            run.step()
    model.eval()
    return run


def _taught(teacher: nn.Module) -> Any:
    return sc.distillation(teacher, lambda m, b: F.cross_entropy(m(b[0]), b[1]), temperature=4.0, weight=0.5)


def rows_of(args: Any, data: Split, seed: int) -> Any:
    """Dense, then every method that was asked for."""
    torch.manual_seed(seed)
    dense, start = MAKE[args.network]().to(memory_format=torch.channels_last), time.process_time()
    if not recall(dense, args, "dense", seed):  # a dense network out of the cache shows no time
        fit(dense, data, epochs=args.dense_epochs, seed=seed, lr=1e-3, augment=args.augment)
        keep(dense, args, "dense", seed)
    total = sum(p.numel() for p in dense.parameters() if p.dim() > 1)
    yield {"method": "dense", "accuracy": accuracy(dense, data.x_test, data.y_test), "kept": total} | _time(start)
    sparsity = 1 - args.keep / total
    steps = int(args.epochs * (len(data.x_train) // BATCH))
    end = int(args.part * steps)
    for name in args.methods[: None if seed == 0 else args.later]:
        known = None if args.cache is None else args.cache / f"{args.network}_{name}_{args.keep}_{seed}{args.name}.json"
        if known is not None and known.exists():
            yield json.loads(known.read_text())
            continue
        model, start = copy.deepcopy(dense), time.process_time()
        teacher = copy.deepcopy(dense) if args.teacher else None
        if args.begin_at and not recall(model, args, f"{name}_{args.begin_at}", seed):
            raise SystemExit(f"--begin-at {args.begin_at}: run that first, with the same --cache")

        def begin(m: nn.Module, o: Any, total_steps: int, name: str = name) -> Any:
            if name == "admm":
                stages = tuple(args.stages)
                length = end / (len(stages) * 1.5 + 1)
                method: Any = sc.methods.ADMM(
                    sparsity=sparsity,
                    stages=stages,
                    rho=args.rho,
                    growth=args.growth,
                    iterations=args.iterations,
                    every=max(1, int(length / args.iterations)),
                    scope=args.scope,
                )
            else:
                criterion: Any = Random(seed=seed) if name == "random" else "magnitude"
                schedule = sc.PolynomialDecay(begin_step=0, end_step=end, frequency=50)
                method = sc.methods.Gradual(sparsity=sparsity, schedule=schedule, criterion=criterion, scope=args.scope)
            return method.start(m, o, total_steps=total_steps)

        run = fit(model, data, epochs=args.epochs, seed=seed + 100, lr=args.lr, begin=begin, cut=args.part, teacher=teacher, augment=args.augment)  # fmt: skip
        pruned = run.finish()
        kept = sum(int((p != 0).sum()) for p in pruned.model.parameters() if p.dim() > 1)
        per_layer = {n: int(m.sum()) for n, m in pruned.masks.items()}
        history = getattr(run, "history", [])
        keep(pruned.model, args, f"{name}_{args.keep}", seed)
        found = {
            "method": name, "accuracy": accuracy(pruned.model, data.x_test, data.y_test), "kept": kept, "times": total / kept,
            "per_layer": per_layer, "primal": [round(row["primal"], 4) for row in history][-5:], "steps": steps,
        } | _time(start)  # fmt: skip
        if known is not None:
            known.write_text(json.dumps(found))
        yield found


def keep(model: nn.Module, args: Any, name: str, seed: int) -> None:
    """Write a network into the cache, if there is one."""
    if args.cache is not None:
        args.cache.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), args.cache / f"{args.network}_{name}_{seed}.pt")


def recall(model: nn.Module, args: Any, name: str, seed: int) -> bool:
    """Read it, if it is there."""
    path = None if args.cache is None else args.cache / f"{args.network}_{name}_{seed}.pt"
    if path is None or not path.exists():
        return False
    model.load_state_dict(torch.load(path, weights_only=True))
    return True


def _time(start: float) -> dict[str, float]:
    return {"cpu_seconds": round(time.process_time() - start, 1)}


def main() -> None:
    """Measure and write ``results/admm_<network>_<keep>.json`` after every row."""
    parser = options(__doc__)
    parser.add_argument("--network", choices=MAKE, default="lenet_5")
    parser.add_argument("--keep", type=int, default=6050, help="weights that stay at most")
    parser.add_argument("--stages", type=float, nargs="*", default=[])
    parser.add_argument("--methods", nargs="*", default=["admm", "gradual", "random"])
    parser.add_argument("--later", type=int, default=2, help="how many of the methods run on seeds after the first")
    parser.add_argument("--dense-epochs", type=float, default=4)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--part", type=float, default=0.6, help="part of the steps before the cut")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rho", type=float, default=1e-3)
    parser.add_argument("--growth", type=float, default=1.2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--scope", default="global")
    parser.add_argument("--name", default="")
    parser.add_argument("--cache", type=Path, help="folder for the networks, to begin at later")
    parser.add_argument("--begin-at", type=int, default=0, help="begin at the result that kept so many (progressive)")
    parser.add_argument(
        "--augment", choices=AUGMENT, default="shifts", help="what is done with the training images; '' for nothing"
    )
    parser.add_argument("--teacher", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = load_mnist(args.data), []
    if args.quick:
        data = Split(data.x_train[:6400], data.y_train[:6400], data.x_test, data.y_test)
    for seed in range(args.first_seed, 1 if args.quick else args.seeds):
        for row in rows_of(args, data, seed):
            rows.append({"network": args.network, "seed": seed} | row)
            print(rows[-1], flush=True)
            if not args.quick:
                about = {k: getattr(args, k) for k in ("keep", "stages", "dense_epochs", "epochs", "part", "iterations", "rho", "growth", "lr", "scope", "augment", "teacher", "begin_at")}  # fmt: skip
                record(f"admm_{args.network}_{args.keep}{args.name}", rows, out=args.out, batch=BATCH, **about)


if __name__ == "__main__":
    main()
