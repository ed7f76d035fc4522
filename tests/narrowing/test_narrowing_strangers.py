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


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(8, 40, batch_first=True), nn.Linear(40, 10)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.Linear(8, 80), nn.Linear(40, 10)

    def forward(self, x):
        u, v = self.up(x).chunk(2, -1)
        return self.fc(u * v.sigmoid())


@pytest.mark.parametrize(("model", "x"), [(Recurrent(), torch.randn(2, 5, 8)), (Gated(), torch.randn(2, 8))])
@pytest.mark.parametrize("asked", [{"sparsity": 0.45}, {"sparsity": 0.3}, {"budget": "params:50%"}])
def test_widths_are_multiples_also_where_a_unit_has_several_rows(model, x, asked):
    """Four gates of an LSTM, two halves of a gated unit: 8 divides what the next layer reads, not only the rows."""
    thin = sc.prune(model, granularity="channel", scope="layer", round_to=8, example_inputs=x, **asked).model
    assert thin.fc.in_features % 8 == 0
    assert thin.fc.in_features < 40


def test_heads_are_rounded_by_their_width():
    """A head of 8 is a multiple of 8 by itself; with multiples of 16, heads go in pairs."""
    layer, x = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval(), torch.randn(2, 5, 32)
    (group,) = [group for group in sc.couple(layer, x).groups() if group.kind == "head"]
    assert group.entries == 8
    for multiple, sparsity, heads in ((8, 0.3, 3), (16, 0.75, 2)):
        asked = {"granularity": "channel", "scope": "layer", "sparsity": sparsity, "round_to": multiple}
        assert sc.prune(layer, example_inputs=x, **asked).model.self_attn.num_heads == heads
