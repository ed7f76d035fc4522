"""Channels of a convnet on Fashion-MNIST at equal multiply-accumulates: GDP, Taylor, L1, slimming and random, beside training from scratch.

A network of four convolutions with batch norm is trained; then every method gets the same number of further steps, the same optimizer
and the same budget. ``stepwise``: narrow in four steps, training in between. ``at once``: narrow, then train. ``GDP``: units leave and
return while it trains. ``from scratch``: a new network of the widths that stepwise Taylor found, and one of uniform widths, trained for
as many steps as the dense network and the pruning had together. Accuracies are on the 10,000 test images.

    python -m benchmarks.fashion            about an hour a budget, three seeds
"""

import copy
import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True)
class Bench:
    """What all cases of one seed share."""

    data: Split
    seed: int
    dense_steps: int
    steps: int
    model: nn.Module
    task: sc.Task

    @classmethod
    def of(cls, data: Split, seed: int, dense_steps: int, steps: int) -> "Bench":
        """Train the dense network."""
        torch.manual_seed(seed)
        model, task = convnet(), task_of(data)
        fit(model, data, dense_steps, seed=seed)
        return cls(data, seed, dense_steps, steps, model, task)

    def longer(self) -> nn.Module:
        """The dense network, trained on for as long as the others."""
        model = copy.deepcopy(self.model)
        fit(model, self.data, self.steps, seed=self.seed + 100)
        return model

    def at_once(self, criterion: str, scope: str, budget: str) -> nn.Module:
        """Narrow, then train."""
        how = {"granularity": "channel", "scope": scope, "budget": budget, "seed": self.seed}
        thin = sc.prune(self.model, criterion, task=self.task, example_inputs=EXAMPLE, **how).model
        fit(thin, self.data, self.steps, seed=self.seed + 100)
        return thin

    def stepwise(self, criterion: str, budget: str) -> nn.Module:
        """Narrow in steps, training in between."""
        method = sc.methods.Stepwise(criterion=criterion, steps=ROUNDS, budget=budget)

        def train(model: nn.Module, k: int) -> None:
            fit(model, self.data, self.steps // ROUNDS, seed=self.seed + 100 + k)

        return method(self.model, train, task=self.task, example_inputs=EXAMPLE).model

    def gdp(self, scope: str, budget: str) -> tuple[nn.Module, dict[str, Any]]:
        """Units leave and return in the first quarter of the steps; chosen on seed 3, which is in no table."""
        method = sc.methods.GDP(every=50, batches=5, end_step=self.steps // 4, scope=scope, budget=budget)
        pruned = fit(copy.deepcopy(self.model), self.data, self.steps, seed=self.seed + 100, method=method)
        return pruned.model, {key: pruned.report.settings[key] for key in ("left", "returned")}

    def slimming(self, budget: str) -> nn.Module:
        """Half of the steps under the penalty, half after narrowing."""
        method, half = sc.methods.Slimming(strength=1e-3, budget=budget), self.steps // 2
        thin: nn.Module = fit(copy.deepcopy(self.model), self.data, half, seed=self.seed + 100, method=method).model
        fit(thin, self.data, self.steps - half, seed=self.seed + 200)
        return thin

    def scratch(self, widths: tuple[int, ...]) -> nn.Module:
        """A new network, for as many steps as the dense one and the pruning had."""
        torch.manual_seed(self.seed)
        model = convnet(widths)
        fit(model, self.data, self.dense_steps + self.steps, seed=self.seed)
        return model

    def uniform(self, budget: str) -> tuple[int, ...]:
        """The widths of the same fraction everywhere."""
        how = {"granularity": "channel", "scope": "layer", "budget": budget}
        return widths_of(sc.prune(self.model, "magnitude", example_inputs=EXAMPLE, **how).model)


def widths_of(model: nn.Module) -> tuple[int, ...]:
    return tuple(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))


def cases_of(share: float, found: Callable[[str], tuple[int, ...]]) -> Iterator[tuple[str, Callable[[Bench], Any]]]:
    """Every method at one budget; ``found`` gives the widths of a row that is there."""
    budget = f"macs:{100 * share:g}%"
    for criterion, scope in (
        ("magnitude", "layer"),
        ("magnitude", "global"),
        ("random", "layer"),
        ("taylor_map", "layer"),
        ("taylor_map", "global"),
    ):
        yield f"{criterion}, {scope}, at once", partial(Bench.at_once, criterion=criterion, scope=scope, budget=budget)
    for criterion in ("taylor_map", "magnitude", "random"):
        yield f"{criterion}, global, stepwise", partial(Bench.stepwise, criterion=criterion, budget=budget)
    yield "from scratch, widths of stepwise Taylor", lambda b: b.scratch(found("taylor_map, global, stepwise"))
    for scope in ("layer", "global"):
        yield f"GDP, {scope}", partial(Bench.gdp, scope=scope, budget=budget)
    yield "slimming", partial(Bench.slimming, budget=budget)
    yield "from scratch, uniform widths", lambda b: b.scratch(b.uniform(budget))


def rows_of(
    bench: Bench, shares: Iterable[float], before: list[dict[str, Any]], without: Iterable[str] = ()
) -> Iterator[dict[str, Any]]:
    """All rows of one seed but those that were there ``before``, and those whose names have a word of ``without``."""
    whole, rows = sc.profile(bench.model, EXAMPLE).macs, {(r["method"], r["share"]): r for r in before}

    def row(method: str, share: float, made: Any) -> dict[str, Any]:
        model, more = made if isinstance(made, tuple) else (made, {})
        score = accuracy(model, bench.data.x_test, bench.data.y_test)
        macs, params = sc.profile(model, EXAMPLE).macs / whole, sum(p.numel() for p in model.parameters())
        found = {"seed": bench.seed, "share": share, "method": method, "accuracy": score, "macs": macs}
        rows[method, share] = found | {"params": params, "widths": list(widths_of(model))} | more
        return rows[method, share]

    if ("dense", 1.0) not in rows:
        yield row("dense", 1.0, bench.model)
    if ("dense, trained on", 1.0) not in rows:
        yield row("dense, trained on", 1.0, bench.longer())
    for share in shares:
        for method, make in cases_of(share, lambda name, share=share: tuple(rows[name, share]["widths"])):  # type: ignore[misc]
            if (method, share) not in rows and not any(word in method for word in without):
                yield row(method, share, make(bench))


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
        f"Dense {statistics.fmean(dense):.2f}; trained on for as many steps {statistics.fmean(longer):.2f}. {len(dense)} seed(s): mean ± sample deviation.\n\n"
        + table(["method", *(f"{share:.0%} MACs" for share in shares)], body)
        + f"\n\n{about(found)}"
    )


def main() -> None:
    """Train, prune, measure, record."""
    parser = options(__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="budgets (default: %(default)s)")
    parser.add_argument(
        "--without", nargs="+", default=(), help="words: leave out methods whose names have one of them"
    )
    parser.add_argument("--keep", action="store_true", help="go on: measure only the rows that are not there yet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    whole, first = load_fashion(args.data), 2560 if args.quick else 20_000
    data = Split(whole.x_train[:first], whole.y_train[:first], whole.x_test, whole.y_test)
    dense_steps, steps = (40, 40) if args.quick else (900, 600)
    path = args.out / "fashion.json"
    rows = json.loads(path.read_text())["rows"] if args.keep and path.exists() else []
    for seed in range(1 if args.quick else args.seeds):
        bench = Bench.of(data, seed, dense_steps, steps)
        for found in rows_of(bench, args.shares, [row for row in rows if row["seed"] == seed], args.without):
            rows.append(found)
            print(found, flush=True)
            if not args.quick:
                facts = {"train_images": len(data.x_train), "dense_steps": dense_steps, "steps": steps}
                record("fashion", rows, out=args.out, **facts)


if __name__ == "__main__":
    main()
