"""A model that is one layer has no names to tell: its receipt comes back all the same."""

import copy

import pytest
from torch import nn

import secateur as sc


@pytest.mark.parametrize("layer", [nn.Linear(10, 10), nn.LSTM(4, 4)], ids=["linear", "lstm"])
def test_a_single_layer_round_trips(layer, tmp_path):
    pruned = sc.prune(layer, sparsity=0.5)
    sc.save(pruned, tmp_path / "layer.safetensors")
    again = sc.load(tmp_path / "layer.safetensors", copy.deepcopy(layer))
    assert again.masks == pruned.masks
    assert again.report == pruned.report
