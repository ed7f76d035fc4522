"""Layer-wise surgery from end to end on small networks."""

import pytest
import torch
from torch import nn

import secateur as sc


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))


def task():
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(12, 12, generator=g)
    return sc.Task([torch.randn(64, 12, generator=g) @ mix for _ in range(4)])


def error(pruned, dense):
    x = torch.cat(list(task().batches))
    with torch.no_grad():
        return float((pruned(x) - dense(x)).square().mean())


@pytest.mark.parametrize("granularity", ["unstructured", "row", "2:4", "block:4x1", "filter", "input_channel"])
def test_it_is_better_than_magnitude_with_as_many_weights(granularity):
    model = net()
    how = {"granularity": granularity, "ignore": ["4"], "scope": "layer"} | (
        {} if granularity == "2:4" else {"sparsity": 0.5}
    )
    surgical = sc.prune(model, "layer_obs", task=task(), **how)
    plain = sc.prune(model, "magnitude", task=task(), **how)
    assert surgical.masks.kept == plain.masks.kept
    assert error(surgical.model, model) < error(plain.model, model)
    for name, mask in surgical.masks.items():
        assert not surgical.model.get_parameter(name)[~mask].any()
