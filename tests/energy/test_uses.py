"""Layers that are no plain matrices: recurrent ones and attention, counted by hand; budgets see all of their weights."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import secateur as sc
from secateur.costs.energy import Energy
from secateur.energy.systolic import SystolicArray
from secateur.energy.uses import uses_of


class Last(nn.Module):
    """The last output of a recurrent layer, classified."""

    def __init__(self, layer, wide):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(wide, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


def test_a_recurrent_layer_by_hand():
    """Inputs of all 5 times pass together (one pass of 12 rows); states pass alone, 5 times, and stay in the cache."""
    torch.manual_seed(0)
    of_inputs, of_states = uses_of(nn.LSTM(3, 2, batch_first=True), torch.zeros(7, 5, 3))
    assert (of_inputs.name, of_states.name) == ("weight_ih_l0", "weight_hh_l0")
    assert (of_inputs.weights, of_inputs.positions, of_inputs.inputs, of_inputs.outputs) == (24, 5, 15, 0)
    assert (of_states.weights, of_states.positions, of_states.inputs, of_states.outputs) == (16, 5, 0, 10)
    array = SystolicArray()
    assert array.slopes(of_inputs) == (200 + 6 + 5 * 4, 200 + 6 + 5 * 4)
    assert array.slopes(of_states) == (200 + 5 * 6 + 5 * 4, 5 * 200 + 5 * 6 + 5 * 4)
    assert array.of_inputs(of_states) == (10 * (6 + 8), 0, 200 * 10)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("make", [nn.RNN, nn.GRU, nn.LSTM])
def test_layers_directions_and_projections_are_all_counted(make):
    layer = make(
        3, 4, num_layers=2, bidirectional=True, batch_first=True, **({"proj_size": 2} if make is nn.LSTM else {})
    )
    uses = uses_of(layer, torch.zeros(2, 6, 3))
    assert {use.name for use in uses} == {name for name, p in layer.named_parameters() if p.dim() == 2}
    assert all(use.positions == 6 for use in uses)


def test_sequences_may_stand_in_any_form():
    layer = nn.GRU(3, 4)
    assert uses_of(layer, torch.zeros(6, 3)) == uses_of(layer, torch.zeros(6, 2, 3))

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(pack_sequence([x[0], x[1, :4]]))[1]

    assert {use.positions for use in uses_of(Packed(), torch.zeros(2, 6, 3))} == {5}


def test_cells_are_counted_at_every_call():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(3, 4)

        def forward(self, x):
            state = None
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return state[0]

    assert [use.name for use in uses_of(Loop(), torch.zeros(2, 3, 3))] == ["cell.weight_ih", "cell.weight_hh"] * 3


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_costs_what_its_projections_cost_as_linear_layers(batch_first):
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=batch_first), torch.zeros(1, 5, 8)
    uses = uses_of(attention, (x, x, x) if batch_first else (x.transpose(0, 1),) * 3)
    assert [use.name for use in uses] == ["in_proj_weight", "out_proj.weight"]
    alike = [uses_of(nn.Linear(8, wide), x)[0] for wide in (24, 8)]
    assert [SystolicArray().energy(use, 10) for use in uses] == [SystolicArray().energy(use, 10) for use in alike]


def test_keys_and_values_of_their_own():
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    inputs = torch.zeros(1, 5, 8), torch.zeros(1, 7, 6), torch.zeros(1, 7, 4)
    found = {use.name: (use.positions, use.weights) for use in uses_of(attention, inputs)}
    assert found == {
        "q_proj_weight": (5, 64),
        "k_proj_weight": (7, 48),
        "v_proj_weight": (7, 32),
        "out_proj.weight": (5, 64),
    }


@pytest.mark.parametrize("granularity", ["unstructured", "channel"])
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_a_budget_takes_weights_from_recurrent_layers(make, granularity):
    torch.manual_seed(0)
    model, x = Last(make(12, 32, batch_first=True), 32), torch.randn(2, 9, 12)
    pruned = sc.prune(model, "magnitude", budget="energy:40%", granularity=granularity, example_inputs=x)
    (dense,), (now,) = Energy().measure([model], x), Energy().measure([pruned.model], x)
    assert 0.36 * dense < now <= 0.4 * dense
    kept = sum(int(p.count_nonzero()) for p in pruned.model.layer.parameters())
    assert kept < 0.6 * sum(p.numel() for p in model.layer.parameters())


@pytest.mark.parametrize("granularity", ["unstructured", "channel"])
def test_a_budget_takes_weights_from_attention(granularity):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    x = torch.randn(2, 9, 16)
    pruned = sc.prune(model, "magnitude", budget="energy:60%", granularity=granularity, example_inputs=x)
    (dense,), (now,) = Energy().measure([model], x), Energy().measure([pruned.model], x)
    assert 0.5 * dense < now <= 0.6 * dense
    kept = sum(int(p.count_nonzero()) for n, p in pruned.model.named_parameters() if "self_attn" in n)
    assert kept < sum(p.numel() for n, p in model.named_parameters() if "self_attn" in n)


def test_weights_that_are_computed_are_counted():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    (use,) = uses_of(layer, torch.zeros(1, 4))
    assert (use.name, use.weights) == ("weight", 12)
