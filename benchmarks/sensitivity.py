"""The allocation found from sensitivity curves beside the others, one-shot magnitude without any training.

LeNet-300-100 on MNIST (weights of the L-OBS authors, inputs in [0, 1]) and ResNet-20 on CIFAR-10. Curves are measured on training
images, accuracies on test images, so the allocation has not seen what it is judged by.

    python -m benchmarks.sensitivity
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from benchmarks.data import Split, load_cifar, load_mnist
from benchmarks.nets import load_lenet_300_100, load_resnet
from benchmarks.record import options, record, timed
from benchmarks.training import accuracy
from secateur.criteria.magnitude import Magnitude
from secateur.methods.one_shot import OneShot
from secateur.names import allocation_of

STEPS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
OTHERS = ("layer", "global", "erk", "lamp")


def lenet(given: argparse.Namespace) -> tuple[nn.Module, Split]:
    model = load_lenet_300_100(str(given.data / "models" / "lenet300_100_mnist.pt"))
    return model, load_mnist(given.data, mean=0.0, std=1.0)


def resnet(given: argparse.Namespace) -> tuple[nn.Module, Split]:
    return load_resnet(str(given.data / "models" / "resnet20_cifar10.pt"), 3), load_cifar(given.data)


def rows(
    name: str, model: nn.Module, data: Split, *, images: int, sparsities: tuple[float, ...]
) -> Iterator[dict[str, Any]]:
    x, y = data.x_train[:images], data.y_train[:images]
    task = sc.Task(
        list(zip(x.split(500), y.split(500), strict=True)),
        loss=lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        evaluate=lambda net: accuracy(net, x, y),
    )
    yield {"model": name, "allocation": "dense", "sparsity": 0.0, "accuracy": accuracy(model, data.x_test, data.y_test)}
    found = {}
    for metric in ("loss", "evaluate"):
        found[metric], seconds = timed(
            lambda metric=metric: sc.sensitivity(model, task, sparsities=STEPS, metric=metric)
        )
        yield {
            "model": name,
            "metric": metric,
            "curves": found[metric].to_dict()["curves"],
            "seconds": round(seconds, 1),
        }
    for sparsity in sparsities:
        ways = {other: allocation_of(other, sparsity) for other in OTHERS}
        ways |= {f"sensitive, from {metric}": curves.allocation(sparsity) for metric, curves in found.items()}
        for way, allocation in ways.items():
            pruned = OneShot(criterion=Magnitude(), allocation=allocation)(model)
            row = {"model": name, "allocation": way, "sparsity": sparsity, "kept": pruned.masks.kept}
            yield row | {"accuracy": accuracy(pruned.model, data.x_test, data.y_test)}


def main() -> None:
    given = options(__doc__).parse_args()
    torch.manual_seed(0)
    cases = (("LeNet-300-100", lenet, 10_000, (0.8, 0.9, 0.95, 0.97)), ("ResNet-20", resnet, 500, (0.5, 0.6, 0.7, 0.8)))
    table = []
    for name, make, images, sparsities in cases[: 1 if given.quick else 2]:
        model, data = make(given)
        with torch.no_grad():
            for row in rows(name, model.eval(), data, images=images, sparsities=sparsities):
                table.append(row)
                if "accuracy" in row:
                    print(f"{name:14} {row['sparsity']:.2f} {row['allocation']:26} {row['accuracy']:6.2f}", flush=True)
    if not given.quick:
        record("sensitivity", table, out=given.out, criterion="magnitude, one-shot, no training")


if __name__ == "__main__":
    main()
