"""What strangers met: networks that draw, graphs of their own, budgets that are kept already, weights without modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.costs.macs import Macs
from secateur.errors import NarrowingFailed

IMAGE = torch.randn(2, 3, 16, 16)


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 4)
    ).eval()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        hidden = self.a(x).relu()
        return self.b(hidden + 0.1 * torch.randn_like(hidden))


class Bare(nn.Module):
    """All weights in one module, used by functions."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((32, 3, 3, 3), (48, 32, 3, 3), (64, 48), (10, 64))
        self.w1, self.w2, self.w3, self.w4 = (nn.Parameter(torch.randn(s) * 0.1) for s in shapes)

    def forward(self, x):
        h = F.relu(F.conv2d(F.relu(F.conv2d(x, self.w1, padding=1)), self.w2)).mean((2, 3))
        return F.linear(F.relu(F.linear(h, self.w3)), self.w4)


def test_a_network_that_draws_is_told_so():
    with pytest.raises(NarrowingFailed, match="draws random numbers"):
        sc.prune(Noisy(), granularity="channel", sparsity=0.5, example_inputs=torch.randn(4, 8))


def test_a_graph_of_the_users_own_is_saved_and_loaded(tmp_path):
    pruned = sc.prune(torch.fx.symbolic_trace(convnet()), granularity="channel", sparsity=0.5, example_inputs=IMAGE)
    sc.save(pruned, tmp_path / "small.safetensors")
    loaded = sc.load(tmp_path / "small.safetensors", torch.fx.symbolic_trace(convnet()))
    torch.testing.assert_close(loaded.model(IMAGE), pruned.model(IMAGE))


@pytest.mark.parametrize("budget", ["macs:100%", "peak_memory:1GB", "params:1e3k"])
def test_a_budget_that_is_kept_already_says_so(budget):
    pruned = sc.prune(convnet(), granularity="channel", budget=budget, example_inputs=IMAGE)
    assert pruned.masks.kept == pruned.masks.total
    assert any("the dense model keeps that as it is" in note for note in pruned.report.notes)


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_one_module_have_prices_of_their_own(seed):
    torch.manual_seed(seed)
    model = Bare()
    pruned = sc.prune(model, granularity="channel", budget="macs:50%", example_inputs=IMAGE)
    dense, narrow = Macs().measure([model, pruned.model], IMAGE)
    assert 0.48 * dense <= narrow <= 0.5 * dense
