"""Channels of a convnet on Fashion-MNIST at equal multiply-accumulates: GDP, Taylor, L1, slimming and random, beside training from scratch.

A network of four convolutions with batch norm is trained; then every method gets the same number of further steps, the same optimizer
and the same budget. ``stepwise``: narrow in four steps, training in between. ``at once``: narrow, then train. ``GDP``: units leave and
return while it trains. ``from scratch``: a new network of the widths that stepwise Taylor found, and one of uniform widths, trained for
as many steps as the dense network and the pruning had together. Accuracies are on the 10,000 test images.

    python -m benchmarks.fashion            about 40 minutes
"""

import argparse
import copy
import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from benchmarks.data import Split, load_fashion
from benchmarks.record import options, record
from benchmarks.tables import about, table
from benchmarks.training import accuracy, each_batch

EXAMPLE = torch.zeros(1, 1, 28, 28)
WIDTHS = (32, 32, 64, 64)
SHARES = (0.25, 0.1)
ROUNDS = 4


def convnet(widths: tuple[int, ...] = WIDTHS) -> nn.Sequential:
    """Four convolutions of 3x3, two of stride 2."""
    layers: list[nn.Module] = []
    for before, width, stride in zip((1, *widths), widths, (1, 2, 1, 2), strict=False):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def fit(model: nn.Module, data: Split, steps: int, *, seed: int, lr: float = 0.05, method: Any = None) -> Any:
    """SGD with momentum, one falling cosine; with a ``method`` its run is started, stepped and finished."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    run = method.start(model, optimizer, example_inputs=EXAMPLE, total_steps=steps) if method else None
    model.train()
    for x, y in itertools.islice(each_batch(data, 1000, 128, torch.Generator().manual_seed(seed)), steps):
        optimizer.zero_grad(set_to_none=True)
        (F.cross_entropy(model(x), y) + (run.penalty() if run else 0)).backward()
        optimizer.step()
        schedule.step()
        if run:
            run.step()
    model.eval()
    return run.finish() if run else None


def task_of(data: Split) -> sc.Task:
    batches = list(zip(data.x_train[:512].split(64), data.y_train[:512].split(64), strict=True))
    return sc.Task(batches, loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]))


def rows_of(data: Split, seed: int, dense_steps: int, steps: int) -> Iterator[dict[str, Any]]:
    """All rows of one seed."""
    torch.manual_seed(seed)
    model, task = convnet(), task_of(data)
    fit(model, data, dense_steps, seed=seed)
    whole = sc.profile(model, EXAMPLE).macs

    def row(method: str, thin: nn.Module, share: float) -> dict[str, Any]:
        macs, params = sc.profile(thin, EXAMPLE).macs, sum(p.numel() for p in thin.parameters())
        score = accuracy(thin, data.x_test, data.y_test)
        widths = [m.out_channels for m in thin.modules() if isinstance(m, nn.Conv2d)]
        return {
            "seed": seed,
            "share": share,
            "method": method,
            "accuracy": score,
            "macs": macs / whole,
            "params": params,
            "widths": widths,
        }

    yield row("dense", model, 1.0)
    longer = copy.deepcopy(model)
    fit(longer, data, steps, seed=seed + 100)
    yield row("dense, trained on", longer, 1.0)
    for share in SHARES:
        asked = {"budget": f"macs:{100 * share:g}%"}
        for criterion, scope in (
            ("magnitude", "layer"),
            ("magnitude", "global"),
            ("random", "layer"),
            ("taylor_map", "global"),
        ):
            thin = sc.prune(
                model,
                criterion,
                granularity="channel",
                scope=scope,
                seed=seed,
                task=task,
                example_inputs=EXAMPLE,
                **asked,
            ).model
            fit(thin, data, steps, seed=seed + 100)
            yield row(f"{criterion}, {scope}, at once", thin, share)
        for criterion in ("taylor_map", "magnitude", "random"):
            method = sc.methods.Stepwise(criterion=criterion, steps=ROUNDS, **asked)
            found = method(
                model,
                lambda m, k: fit(m, data, steps // ROUNDS, seed=seed + 100 + k),
                task=task,
                example_inputs=EXAMPLE,
            )
            yield row(f"{criterion}, global, stepwise", found.model, share)
            widths = tuple(m.out_channels for m in found.model.modules() if isinstance(m, nn.Conv2d))
            if criterion == "taylor_map":
                scratch = convnet(widths)
                fit(scratch, data, dense_steps + steps, seed=seed)
                yield row("from scratch, widths of stepwise Taylor", scratch, share)
        gdp = copy.deepcopy(model)
        pruned = fit(gdp, data, steps, seed=seed + 100, method=sc.methods.GDP(every=100, batches=10, **asked))
        history = pruned.report.settings
        yield row("GDP", pruned.model, share) | {"left": history["left"], "returned": history["returned"]}
        slim = copy.deepcopy(model)
        slimmed = fit(slim, data, steps // 2, seed=seed + 100, method=sc.methods.Slimming(strength=1e-3, **asked)).model
        fit(slimmed, data, steps - steps // 2, seed=seed + 200)
        yield row("slimming", slimmed, share)
        uniform = sc.prune(
            model, "magnitude", granularity="channel", scope="layer", example_inputs=EXAMPLE, **asked
        ).model
        scratch = convnet(tuple(m.out_channels for m in uniform.modules() if isinstance(m, nn.Conv2d)))
        fit(scratch, data, dense_steps + steps, seed=seed)
        yield row("from scratch, uniform widths", scratch, share)


def section(found: dict[str, Any]) -> str:
    """The page's table: mean and deviation over seeds."""
    rows = found["rows"]
    shares = sorted({row["share"] for row in rows}, reverse=True)[1:]
    dense = [r["accuracy"] for r in rows if r["method"] == "dense"]
    longer = [r["accuracy"] for r in rows if r["method"] == "dense, trained on"]
    body = []
    for method in dict.fromkeys(row["method"] for row in rows if row["share"] < 1):
        cells = []
        for share in shares:
            own = [r["accuracy"] for r in rows if r["method"] == method and r["share"] == share]
            spread = f" ± {statistics.stdev(own):.2f}" if len(own) > 1 else ""
            cells.append(f"{statistics.fmean(own):.2f}{spread}" if own else "")
        body.append([method, *cells])
    return (
        "## GDP and Taylor on Fashion-MNIST\n\nA convnet of 32-32-64-64 channels, equal multiply-accumulates, equal further steps. "
        f"Dense {statistics.fmean(dense):.2f}; trained on for as many steps {statistics.fmean(longer):.2f}. Mean ± sample deviation over seeds.\n\n"
        + table(["method", *(f"{share:.0%} MACs" for share in shares)], body)
        + f"\n\n{about(found)}"
    )


def main() -> None:
    """Train, prune, measure, record."""
    args: argparse.Namespace = options(__doc__).parse_args()
    torch.set_num_threads(1)
    whole, first = load_fashion(args.data), 2560 if args.quick else 20_000
    data = Split(whole.x_train[:first], whole.y_train[:first], whole.x_test, whole.y_test)
    dense_steps, steps = (40, 40) if args.quick else (900, 600)
    rows = []
    for seed in range(1 if args.quick else args.seeds):
        for found in rows_of(data, seed, dense_steps, steps):
            rows.append(found)
            print(found, flush=True)
            if not args.quick:
                record(
                    "fashion", rows, out=args.out, train_images=len(data.x_train), dense_steps=dense_steps, steps=steps
                )


if __name__ == "__main__":
    main()
