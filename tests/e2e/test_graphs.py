"""timm's classes with shapes written into their code, narrowed as graphs. About two minutes each; needs timm."""

import copy

import pytest
import torch

import secateur as sc

timm = pytest.importorskip("timm")


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "own", "graph"), [("pvt_v2_b0", 0.78, 0.66), ("twins_pcpvt_small", 0.76, 0.63)])
def test_more_leaves_in_a_graph_than_in_the_class(name, own, graph, tmp_path):
    torch.manual_seed(0)
    net, x = timm.create_model(name, num_classes=10).eval(), torch.randn(1, 3, 224, 224)
    half = {"sparsity": 0.5, "scope": "layer", "granularity": "channel", "example_inputs": x}
    assert size(sc.prune(net, "random", **half).model) <= own * size(net)
    pruned = sc.prune(net, "random", fallback="graph", **half)
    assert size(pruned.model) <= graph * size(net)
    assert any("exported graph" in note for note in pruned.report.notes)
    fresh, masked = torch.randn(2, 3, 224, 224), pruned.masks.apply_(copy.deepcopy(net))
    torch.testing.assert_close(pruned.model(fresh), masked(fresh), rtol=1e-4, atol=1e-4)
    sc.save(pruned, tmp_path / "thin.safetensors")
    again = sc.load(tmp_path / "thin.safetensors", timm.create_model(name, num_classes=10).eval())
    assert torch.equal(again.model(fresh), pruned.model(fresh))
