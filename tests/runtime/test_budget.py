"""A latency budget in the time of the engine."""

import pytest
import torch
from torch import nn

import secateur as sc
import secateur_engine

X = torch.randn(1, 3, 16, 16)
needs_engine = pytest.mark.skipif(not secateur_engine.available(""), reason="the compiled engine is not installed")


def net():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *convolutions, nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 16 * 16, 12)
    ).eval()


@needs_engine
@pytest.mark.parametrize("granularity", ["unstructured", "block:4x1"])
def test_weights_leave_where_the_time_is_and_no_layer_is_emptied(granularity):
    pruned = sc.prune(
        net(), granularity=granularity, budget="latency:70%", runtime="secateur", example_inputs=X, ignore=["0"]
    )
    left = {name: float(mask.float().mean()) for name, mask in pruned.masks.items()}
    assert set(left) == {"2.weight", "4.weight", "6.weight"}
    assert min(left.values()) > 0.01
    assert pruned.masks.kept < pruned.masks.total
    assert "in the sparse engine were asked for (70.0% of the dense" in pruned.report.notes[-1]
    assert "multiply-accumulates are skipped" in pruned.report.notes[-1]
    torch.testing.assert_close(sc.compile(pruned, X)(X), pruned.model(X).detach(), atol=1e-4, rtol=1e-4)


@needs_engine
def test_channels_leave_by_the_engines_time():
    pruned = sc.prune(net(), granularity="channel", budget="latency:70%", runtime="secateur", example_inputs=X)
    assert pruned.report.after.params < pruned.report.before.params
    assert "latency in the sparse engine were asked for (70.0% of the dense" in pruned.report.notes[0]


@needs_engine
def test_what_the_engine_cannot_reach_is_refused():
    with pytest.raises(sc.errors.OverBudget, match="the engine takes at least"):
        sc.prune(net(), budget="latency:0.0001ms", runtime="secateur", example_inputs=X)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"budget": "latency:50%", "runtime": "tensorrt"}, "'torch' and 'secateur'"),
        ({"sparsity": 0.5, "runtime": "secateur"}, "pass budget="),
        ({"budget": "energy:50%", "runtime": "secateur"}, "is a clock"),
    ],
)
def test_words_that_make_no_sense_are_refused(how, says):
    with pytest.raises(sc.errors.UnknownName, match=says):
        sc.prune(net(), example_inputs=X, **how)


@needs_engine
def test_there_is_nothing_to_time_without_an_example():
    with pytest.raises(sc.errors.NeedsTask, match="example_inputs="):
        sc.prune(net(), budget="latency:50%", runtime="secateur")


def test_without_the_engine_it_says_so(monkeypatch):
    monkeypatch.setattr(secateur_engine, "available", lambda _: "")
    with pytest.raises(sc.errors.UnknownOperation, match="not installed"):
        sc.prune(net(), budget="latency:50%", runtime="secateur", example_inputs=X)


@needs_engine
def test_what_is_gathered_in_training_is_refused_as_elsewhere():
    with pytest.raises(sc.errors.NeedsTask, match="gathered in training"):
        sc.prune(net(), "movement", budget="latency:50%", runtime="secateur", example_inputs=X)
