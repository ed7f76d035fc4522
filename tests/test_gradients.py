"""Gradients by hand; the model comes back as it was."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.gradients import batch_gradients, mean_gradients


def make():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0]])
    return layer


TASK = sc.Task([torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])], loss=lambda m, x: m(x).sum())


def test_the_mean_over_batches_by_hand():
    assert mean_gradients(make(), ["weight"], TASK, "a test")["weight"].tolist() == [[2.0, 2.0]]


def test_taylor_and_snip_by_hand():
    """g = (2, 2), w = (1, -2): Taylor of the row is |2 - 4|, SNIP |2| + |-4|."""
    for method, score in (("taylor", 2.0), ("snip", 6.0)):
        from secateur.names import find, granularity_of

        scores = find("criteria", method)()(make(), {"weight": sc.LayerFacts()}, TASK)
        assert granularity_of("filter").pool(scores)["weight"].item() == score


def test_a_frozen_weight_without_path_to_the_loss_has_gradient_zero_and_stays_frozen():
    model = nn.ModuleDict({"used": make(), "unused": nn.Linear(2, 2, bias=False)}).requires_grad_(False)
    task = sc.Task([torch.ones(1, 2)], loss=lambda m, x: m["used"](x).sum())
    found = mean_gradients(model, ["used.weight", "unused.weight"], task, "a test")
    assert found["unused.weight"].tolist() == [[0, 0], [0, 0]]
    assert found["used.weight"].tolist() == [[1, 1]]
    assert not any(p.requires_grad for p in model.parameters())


def test_it_runs_under_no_grad_and_in_eval_mode_and_puts_everything_back_after_errors():
    model = nn.Sequential(make(), nn.BatchNorm1d(1), nn.Dropout(0.9)).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes = []

    def loss(m, x):
        modes.append([child.training for child in m])
        if len(modes) == 2:
            raise RuntimeError("broken data")
        return m(x).sum()

    with torch.no_grad(), pytest.raises(RuntimeError, match="broken data"):
        mean_gradients(model, ["0.weight"], sc.Task([torch.ones(1, 2)] * 2, loss=loss), "a test")
    assert modes == [[False] * 3] * 2
    assert [child.training for child in model] == [True, False, True]
    assert not model[0].weight.requires_grad
    assert model[0].weight.grad is None


def test_halves_are_averaged_in_float32():
    model = make().bfloat16()
    task = sc.Task([torch.ones(1, 2, dtype=torch.bfloat16)], loss=lambda m, x: m(x).sum())
    assert mean_gradients(model, ["weight"], task, "a test")["weight"].dtype == torch.float32


def test_what_is_missing_is_said():
    for task, words in [
        (None, "pass task="),
        (sc.Task([1]), "needs gradients"),
        (sc.Task([], loss=lambda m, x: m(x)), "batches"),
    ]:
        with pytest.raises(sc.errors.NeedsTask, match=words):
            list(batch_gradients(make(), ["weight"], task, "the test"))


def test_a_task_is_read_again_or_complains():
    fresh = sc.Task(lambda: iter([1, 2]))
    assert [list(fresh.each_batch("a test")) for _ in range(2)] == [[1, 2], [1, 2]]
    once = sc.Task(iter([1]))
    assert list(once.each_batch("a test")) == [1]
    with pytest.raises(sc.errors.NeedsTask, match="a test needs batches"):
        list(once.each_batch("a test"))
    with pytest.raises(sc.errors.NeedsTask, match="evaluate="):
        once.needs_evaluate("a test")
