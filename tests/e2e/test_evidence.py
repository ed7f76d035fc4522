"""The claims of the project on real input, measured anew or held against the committed results. Minutes; run by hand:

pytest tests/e2e -o addopts=
"""

import copy
import json

import pytest
import torch
from benchmarks import mnist, scale, tables
from benchmarks.data import DATA, load_mnist
from benchmarks.record import RESULTS, plain_bytes, summarise
from benchmarks.training import accuracy, train

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not at {DATA}")


@needs_data
def test_mnist_convnet_at_80_percent_is_as_good_and_much_smaller() -> None:
    """Within 0.2 points of a dense network that trained as long; gzip 3 times and the packed file 4 times smaller."""
    data, setting = load_mnist(), mnist.SETTINGS["convnet"]
    torch.manual_seed(0)
    dense = train(setting.make(), data, epochs=setting.dense_epochs, seed=0, lr=setting.lr)
    further = train(copy.deepcopy(dense), data, epochs=setting.further_epochs, seed=100, lr=setting.further_lr)
    row = mnist.gradual_row(dense, data, setting, criterion="magnitude", sparsity=0.8, seed=0)
    assert row["accuracy"] >= accuracy(further, data.x_test, data.y_test) - 0.2
    assert row["gzip_bytes"] * 3 <= mnist.gzip_bytes(further)
    assert row["packed_bytes"] * 4 <= plain_bytes(further)


@pytest.mark.parametrize("split", ["layers", "one"])
def test_planning_is_exact_linear_and_frugal(split: str) -> None:
    small, large = (scale.measure_apart("secateur", size, split, 1, 3) for size in (20_000_000, 100_000_000))
    assert small["exact"]
    assert large["exact"]
    assert large["memory_ratio"] <= 1.5
    assert large["cpu_seconds"] <= 2 * 5 * small["cpu_seconds"]  # five times the weights; twofold for a busy machine


@pytest.mark.parametrize("name", ["mnist_lenet_300_100", "mnist_convnet", "mnist_lenet_5", "imdb"])
def test_committed_rows_beat_their_random_control(name: str) -> None:
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    means = {
        (one["method"], one["criterion"], one["sparsity"]): one["mean"]
        for one in summarise(
            [row for row in rows if row["scope"] != "layer" or name == "imdb"],
            "accuracy",
            "method",
            "criterion",
            "sparsity",
        )
    }
    controls = [key for key in means if key[:2] == ("gradual", "random")]
    assert controls
    assert all(
        means["gradual", "magnitude", sparsity] >= means[method, criterion, sparsity]
        for method, criterion, sparsity in controls
    )


def test_the_page_shows_the_committed_results() -> None:
    assert (RESULTS.parent / "README.md").read_text() == tables.page(RESULTS), "run python -m benchmarks.tables"
