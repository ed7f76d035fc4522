"""Data-free merging on LeNet-5 (Caffe: 20-50-500-10) and MNIST, after Srinivas & Babu 2015, section 4.1.

Two ways to train: as the other tables do (Adam, two epochs, normalised images), and as Caffe's own solver does (SGD, momentum,
weight decay, 10,000 steps of 64, images in [0, 1]). No image is used for pruning. First the layer of 500 units alone, as in the paper:
accuracy against units removed, for merging, removal in the same order, random units and small units. Then the whole network,
convolutions too, to a budget of parameters; then the cut-off that needs no data. Accuracies are on the 10,000 test images.

    python -m benchmarks.data_free
"""

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from benchmarks.data import Split, load_mnist
from benchmarks.nets import make_lenet_5
from benchmarks.record import options, record
from benchmarks.tables import about, table
from benchmarks.training import accuracy, each_batch, train

REMOVED = (0, 100, 200, 300, 340, 380, 400, 420, 440, 450, 460, 480)
BUDGETS = ("params:25%", "params:20%", "params:17%", "params:15%")
MERGING: dict[str, dict[str, Any]] = {
    "merged": {},
    "same units, not merged": {"naive": True},
    "merged, expected distance": {"distance": "expected"},
    "merged, expected distance, refit": {"distance": "expected", "refit": True},
}
CONVOLUTIONS = ["0", "2"]
EXAMPLE = torch.zeros(1, 1, 28, 28)  # coupling looks at shapes; the value says that no image is used


def train_as_caffe(model: nn.Module, data: Split, *, seed: int, steps: int = 10_000) -> nn.Module:
    """``lenet_solver.prototxt``: rate 0.01 (biases 0.02), momentum 0.9, decay 0.0005, "inv" policy, Xavier."""
    weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    for weight, bias in zip(weights, biases, strict=True):
        bound = (3 / weight[0].numel()) ** 0.5
        nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(bias)
    groups = [{"params": weights, "lr": 0.01}, {"params": biases, "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + 1e-4 * step) ** -0.75)
    model.train()
    batches = each_batch(data, 1 + steps * 64 // len(data.x_train), 64, torch.Generator().manual_seed(seed))
    for _, (x, y) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def trained(recipe: str, data: Split, seed: int) -> nn.Module:
    """A dense network."""
    torch.manual_seed(seed)
    if recipe == "caffe":
        return train_as_caffe(make_lenet_5(), data, seed=seed)
    return train(make_lenet_5(), data, epochs=2, seed=seed)


def curve(model: nn.Module, data: Split, seed: int, removed: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The layer of 500 units alone. What comes before it stays, so the test images go through that once."""
    before = nn.Sequential(*list(model)[:5])
    with torch.no_grad():
        flows = torch.cat([before(x) for x in data.x_test.split(500)])
    for count in removed:
        asked = {"granularity": "channel", "sparsity": count / 500, "ignore": CONVOLUTIONS, "example_inputs": EXAMPLE}
        for name, how in MERGING.items():
            yield row("500 units", name, sc.prune(model, "data_free", **asked, **how), flows, data.y_test)
        for name in ("random", "magnitude"):
            yield row("500 units", name, sc.prune(model, name, seed=seed, **asked), flows, data.y_test)


def row(part: str, method: str, pruned: sc.Pruned, flows: Tensor | None, labels: Tensor) -> dict[str, Any]:
    """What is left, and how accurate it is; ``flows`` are what the fifth layer takes in, where all before it is dense."""
    widths = [module.weight.shape[0] for module in pruned.model if hasattr(module, "weight")]
    before, after = pruned.report.before.params, pruned.report.after.params
    score = accuracy(pruned.model[5:], flows, labels) if flows is not None else None
    return {
        "part": part,
        "method": method,
        "units": widths[:3],
        "removed_units": [full - width for full, width in zip((20, 50, 500), widths, strict=False)],
        "parameters": after,
        "removed_parameters": 1 - after / before,
        "accuracy": score,
    }


def whole(model: nn.Module, data: Split, seed: int, budgets: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The whole network, to a budget."""
    for budget in budgets:
        asked = {"granularity": "channel", "budget": budget, "example_inputs": EXAMPLE}
        cases = [(name, "data_free", how) for name, how in MERGING.items()]
        cases += [(name, name, {"seed": seed}) for name in ("random", "magnitude")]
        for name, method, how in cases:
            pruned = sc.prune(model, method, **asked, **how)
            found = row("whole network", name, pruned, None, data.y_test)
            yield found | {"budget": budget, "accuracy": accuracy(pruned.model, data.x_test, data.y_test)}


def cut_offs(model: nn.Module, data: Split) -> Iterator[dict[str, Any]]:
    """How many the saliencies themselves let go."""
    for distance in ("relative", "expected"):
        for histogram in ("removals", "pairs"):
            for fraction in (0.25, 0.5, 0.75, 1.0):
                how = {"distance": distance, "histogram": histogram, "fraction": fraction}
                pruned = sc.prune(model, "data_free", granularity="channel", example_inputs=EXAMPLE, **how)
                found = row("cut-off", "merged", pruned, None, data.y_test) | how
                limit = pruned.report.settings["groups"][-1]["cut_off"]
                yield found | {"cut_off": limit, "accuracy": accuracy(pruned.model, data.x_test, data.y_test)}


def rows_of(recipe: str, data: Split, seed: int, *, quick: bool) -> Iterator[dict[str, Any]]:
    """All rows of one network."""
    model = trained(recipe, data, seed)
    dense = accuracy(model, data.x_test, data.y_test)
    yield {
        "part": "dense",
        "method": "dense",
        "parameters": sum(p.numel() for p in model.parameters()),
        "removed_parameters": 0.0,
        "accuracy": dense,
    }
    yield from curve(model, data, seed, REMOVED[::4] if quick else REMOVED)
    yield from whole(model, data, seed, BUDGETS[2:3] if quick else BUDGETS)
    yield from cut_offs(model, data)


def section(found: dict[str, Any]) -> str:
    """The page's tables: means over seeds."""
    rows = found["rows"]
    parts = ["## Merging without data: LeNet-5 (Caffe) on MNIST"]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        own = [row for row in rows if row["recipe"] == recipe]
        dense = statistics.fmean(row["accuracy"] for row in own if row["part"] == "dense")
        parts.append(
            f"Trained with {'Adam, two epochs' if recipe == 'adam' else 'the solver of Caffe'}: dense {dense:.2f} %."
        )
        parts += [_curves(own, "500 units", "removed_parameters"), _curves(own, "whole network", "budget")]
    parts += ["The cut-off of the paper:", _cut_off_table(rows), about(found)]
    return "\n\n".join(parts)


def _curves(rows: list[dict[str, Any]], part: str, key: str) -> str:
    """A row for each way, a column for each amount."""
    own = [row for row in rows if row["part"] == part]
    cells: dict[tuple[str, str], list[float]] = {}
    for row in own:
        column = row[key] if isinstance(row[key], str) else f"{100 * row[key]:.1f} % of the parameters gone"
        cells.setdefault((row["method"], column), []).append(row["accuracy"])
    columns = list(dict.fromkeys(column for _, column in cells))
    body = [
        [method, *(f"{statistics.fmean(cells[method, c]):.2f}" if (method, c) in cells else "" for c in columns)]
        for method in dict.fromkeys(method for method, _ in cells)
    ]
    return table([f"{part}, accuracy", *columns], body)


def _cut_off_table(rows: list[dict[str, Any]]) -> str:
    body = [
        [row["recipe"], row["seed"], row["distance"], row["histogram"], f"{row['fraction']:g}", row["removed_units"][-1],
         f"{100 * row['removed_parameters']:.1f} %", f"{row['accuracy']:.2f}"]
        for row in rows
        if row["part"] == "cut-off"
    ]  # fmt: skip
    return table(
        ["trained", "seed", "distance", "histogram", "fraction", "of 500 removed", "parameters gone", "accuracy"], body
    )


def main() -> None:
    """Train, prune, measure, record."""
    parser = options(__doc__)
    parser.add_argument(
        "--recipes", default="adam,caffe", help="how to train, separated by commas (default: %(default)s)"
    )
    args: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for recipe in args.recipes.split(","):
        data = load_mnist(args.data, mean=0.0, std=1.0) if recipe == "caffe" else load_mnist(args.data)
        for seed in range(1 if args.quick else args.seeds):
            for found in rows_of(recipe, data, seed, quick=args.quick):
                rows.append({"recipe": recipe, "seed": seed} | found)
                print(
                    {
                        key: rows[-1].get(key)
                        for key in ("recipe", "seed", "part", "method", "removed_units", "accuracy")
                    },
                    flush=True,
                )
    if not args.quick:
        print(record("data_free", rows, out=args.out))


if __name__ == "__main__":
    main()
