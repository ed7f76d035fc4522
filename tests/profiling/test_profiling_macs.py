"""MACs: numbers that a person can check, agreement with torch's counter, and no silent zeros."""

import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from secateur.profiling.macs import count_macs
from secateur.profiling.operations import terms_of


def count(model, *args, **kwargs):
    return count_macs(model.eval(), args, kwargs)


def total(model, *args, **kwargs):
    return sum(count(model, *args, **kwargs).total.values())


def test_conv_by_hand():
    # 8 x 8 places on the padded output, each meets 8 filters of 3 x 3 x 3
    assert total(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 8, 8)) == 64 * 8 * 3 * 9
    # without padding there are 6 x 6 places: 8 * 3 * 9 * 36
    assert total(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8)) == 8 * 3 * 9 * 36 == 7776


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Linear(10, 4), (10,), 40),
        (nn.Linear(10, 4), (5, 7, 10), 5 * 7 * 40),
        (nn.Conv1d(6, 4, 5, stride=2), (2, 6, 21), 2 * 9 * 4 * 6 * 5),
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 6, 6), 16 * 8 * 9),
        (nn.Conv2d(8, 4, 3, groups=2), (1, 8, 6, 6), 16 * 4 * 4 * 9),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 27 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 9),  # every input place meets the filter
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
        (nn.LSTM(3, 5), (7, 2, 3), 14 * 4 * 5 * (3 + 5)),
        (nn.LSTM(3, 5, num_layers=2, bidirectional=True), (4, 2, 3), 8 * 2 * (20 * 8 + 20 * 15)),
        (nn.LSTM(3, 5, proj_size=2), (4, 2, 3), 8 * (20 * 3 + 20 * 2 + 2 * 5)),
        (nn.GRU(3, 5), (7, 2, 3), 14 * 3 * 5 * (3 + 5)),
        (nn.RNN(3, 5), (7, 2, 3), 14 * 5 * (3 + 5)),
        (nn.LSTMCell(3, 5), (2, 3), 2 * 20 * 8),
        (nn.BatchNorm2d(4), (1, 4, 5, 5), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_layers_by_hand(model, shape, expected):
    found = count(model, torch.zeros(shape))
    assert sum(found.total.values()) == sum(found.nonzero.values()) == expected
    assert not found.uncounted


def test_bilinear_by_hand():
    # 4 rows: 3 * 5 * 2 products with the weight, then 5 * 2 with the second input
    assert total(nn.Bilinear(3, 5, 2), torch.zeros(4, 3), torch.zeros(4, 5)) == 4 * (30 + 10)


def test_attention_by_hand_off_the_fused_path():
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.zeros(2, 4, 8)
    found = count(layer, x, x, x)
    pairs = 2 * 4 * 4 * 8  # one product of all pairs of tokens, over both heads, of 2 sequences
    assert found.total == {"": 8 * 3 * 64 + 2 * pairs, "out_proj": 8 * 64}


def test_transformer_encoder_is_no_silent_zero():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    fast = torch.backends.mha.get_fastpath_enabled()
    assert total(nn.TransformerEncoder(layer, 2), torch.zeros(1, 4, 8)) == 2 * (
        4 * 4 * 64 + 2 * 16 * 8 + 2 * 4 * 8 * 16
    )
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_grouped_query_attention_by_hand():
    class Net(nn.Module):
        def forward(self, q, kv):
            return nn.functional.scaled_dot_product_attention(q, kv, kv, enable_gqa=True)

    assert total(Net(), torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 9, 8)) == 4 * 6 * 9 * (8 + 8)


def test_embedding_is_no_multiplication():
    found = count(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)), torch.zeros(3, dtype=torch.long))
    assert (found.total, list(found.uncounted)) == ({"1": 24}, [])


def test_matrix_vector_and_einsum():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(6, 5)), nn.Parameter(torch.ones(5, 4, 3))

        def forward(self, x):
            return torch.mv(self.a, x).sum() + torch.einsum("i,ijk->jk", x, self.b).sum() + torch.dot(x, x)

    assert total(Net(), torch.ones(5)) == 30 + 60 + 5


def test_nonzero_macs_follow_the_weight_in_use():
    layer = nn.Conv2d(3, 8, 3, padding=1)
    layer.weight.data[:2] = 0
    found = count(layer, torch.zeros(1, 3, 8, 8))
    assert found.nonzero[""] * 4 == found.total[""] * 3


def test_nonzero_macs_of_recurrent_matrices_are_separate():
    layer = nn.LSTM(3, 5)
    layer.weight_hh_l0.data.zero_()
    assert count(layer, torch.zeros(7, 2, 3)).nonzero == {"": 14 * 20 * 3}


def test_a_mask_that_is_applied_in_forward_counts():
    layer = nn.Linear(8, 4)
    prune.random_unstructured(layer, "weight", amount=8)
    assert count(layer, torch.ones(1, 8)).nonzero == {"": 24}


def test_parametrized_layers_are_booked_on_the_layer():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 4)))
    assert count(model, torch.ones(1, 8)).total == {"0": 32}


def test_autocast_keeps_the_density():
    layer = nn.Linear(8, 4)
    layer.weight.data[0] = 0
    with torch.autocast("cpu", torch.bfloat16):
        assert count(layer, torch.ones(1, 8)).nonzero == {"": 24}


def test_tied_weights_count_where_they_run():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    assert count(Net(), torch.zeros(3, dtype=torch.long)).total == {"head": 120}


def test_control_flow_counts_what_ran():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = nn.Linear(4, 4)

        def forward(self, x, times):
            for _ in range(times):
                x = self.step(x)
            return x

    assert count(Net(), torch.ones(1, 4), times=5).total == {"step": 80}


def test_unknown_operations_on_weights_are_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4))

        def forward(self, x):
            return torch.linalg.solve(self.weight, x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Net()

        def forward(self, x):
            return self.inner(x)

    (only,) = count(Outer(), torch.ones(4, 2)).uncounted
    assert only.startswith("inner: ")
    assert "linalg_solve" in only


def test_hidden_operations_that_multiply_are_named():
    @torch.library.custom_op("secateur_tests::my_matmul", mutates_args=())
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b

    class Net(nn.Module):
        def forward(self, x):
            return product(x, x)

    assert list(count(Net(), torch.ones(2, 2)).uncounted) == ["(top level): secateur_tests.my_matmul.default"]


def test_scripted_models_count():
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    assert total(model, torch.ones(1, 4)) == 48


def test_the_meta_device_counts_the_same():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.zeros(1, 3, 8, 8)
    assert total(copy.deepcopy(model).to("meta"), x.to("meta")) == total(model, x)


@given(
    channels=st.integers(1, 4),
    filters=st.integers(1, 4),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_convolutions_agree_with_torch_and_density_is_exact(
    channels, filters, groups, kernel, stride, transposed, seed
):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(channels * groups, filters * groups, kernel, stride=stride, groups=groups)
    torch.manual_seed(seed)
    mask = torch.rand_like(layer.weight) < 0.5
    layer.weight.data.mul_(mask)
    x = torch.zeros(2, channels * groups, 7, 6)
    with FlopCounterMode(display=False) as theirs, torch.no_grad():
        layer(x)
    found = count(layer, x)
    assert found.total[""] * 2 == theirs.get_total_flops()
    assert found.nonzero[""] * mask.numel() == found.total[""] * int(layer.weight.count_nonzero())


def test_rules_that_no_cpu_runs_by_hand():
    ops, zeros = torch.ops.aten, torch.zeros
    weights = [zeros(20, 3), zeros(20, 5), zeros(20), zeros(20)]
    recurrent = terms_of(ops._cudnn_rnn.default, (zeros(7, 2, 3), weights), {}, None)
    assert [term.macs for term in recurrent] == [14 * 60, 14 * 100]
    experts = terms_of(ops._grouped_mm.default, (zeros(10, 4), zeros(3, 4, 6)), {}, None)  # 10 tokens over 3 experts
    assert [term.macs for term in experts] == [10 * 4 * 6]
    joint = terms_of(ops._grouped_mm.default, (zeros(3, 5, 4), zeros(4, 6)), {}, None)  # 6 columns over 3 groups
    assert [term.macs for term in joint] == [5 * 4 * 6]
    time_first = terms_of(ops.conv_tbc.default, (zeros(9, 2, 4), zeros(3, 4, 5)), {}, zeros(7, 2, 5))
    assert [term.macs for term in time_first] == [7 * 2 * 3 * 4 * 5]


def test_quantised_layers_count():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is on its way out, but its models are around
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 8)), {nn.Linear})
        assert total(model, torch.ones(2, 4)) == 64
