"""The table of the README: a convnet on scikit-learn's digits, half of its channels taken out, beside two controls.

Rows: the dense network; narrowed by magnitude and at random, before and after five epochs; a network of that width trained from
scratch for as many epochs in all. Times are processor time of one thread, dense and narrowed in turns, which a busy machine
disturbs less than the clock does.

    python -m benchmarks.narrowing_digits
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import secateur as sc
from benchmarks.record import options, record, summarise
from secateur.demo.digits import DigitsNet, digits_task, fit


def half_as_wide() -> nn.Module:
    """`DigitsNet` with half of its channels and hidden units."""
    features = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10))


def accuracies(seed: int, *, dense: int, tuning: int) -> Iterator[dict[str, Any]]:
    """One row for each network of one seed."""
    torch.manual_seed(seed)
    task, model, x = digits_task(seed=seed), DigitsNet(), torch.rand(32, 1, 8, 8)
    fit(model, task, epochs=dense)
    yield {"network": "dense", "accuracy": task.evaluate(model)}
    for method in ("magnitude", "random"):
        thin = sc.prune(
            model, method, sparsity=0.5, granularity="channel", scope="layer", example_inputs=x, seed=seed
        ).model
        yield {"network": f"{method}, not tuned", "accuracy": task.evaluate(thin)}
        fit(thin, task, epochs=tuning)
        yield {"network": f"{method}, tuned", "accuracy": task.evaluate(thin)}
    torch.manual_seed(seed)
    small = half_as_wide()
    fit(small, task, epochs=dense + tuning)
    yield {"network": "from scratch", "accuracy": task.evaluate(small)}


@torch.no_grad()
def times(batch: int, rounds: int) -> dict[str, Any]:
    """Processor time of one thread in milliseconds: medians, both networks in turns."""
    model, x = DigitsNet().eval(), torch.rand(batch, 1, 8, 8)
    thin = sc.prune(model, sparsity=0.5, granularity="channel", scope="layer", example_inputs=x).model
    found: dict[str, list[float]] = {"dense_ms": [], "narrowed_ms": []}
    for _ in range(rounds):
        for name, network in (("dense_ms", model), ("narrowed_ms", thin)):
            start = time.thread_time_ns()
            network(x)
            found[name].append((time.thread_time_ns() - start) / 1e6)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {"batch": batch, **medians, "ratio": medians["dense_ms"] / medians["narrowed_ms"]}


def main() -> None:
    """Measure, print, record."""
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    dense, tuning, rounds = (1, 1, 20) if given.quick else (15, 5, 1500)
    rows = [row for seed in range(given.seeds) for row in accuracies(seed, dense=dense, tuning=tuning)]
    clocks = [times(batch, rounds) for batch in (1, 32, 256)]
    for row in (*summarise(rows, "accuracy", "network"), *clocks):
        print(row)
    if not given.quick:
        record("narrowing_digits", rows, out=given.out, times=clocks)


if __name__ == "__main__":
    main()
