"""Rows of weights times one vector: which form they are kept in, and that every form gives the same."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import secateur as sc
import secateur_engine
from secateur.runtime.matrices import compressed

needs_engine = pytest.mark.skipif(not secateur_engine.available(), reason="the compiled engine is missing")


def n_of_m(rows, columns, n, m, seed=0):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).view(rows, -1, m)
    kept = torch.zeros_like(weight).scatter_(2, weight.abs().topk(n, 2).indices, 1)
    return (weight * kept).view(rows, columns)


def read_back(kept, rows, columns):
    """The matrix that halves stand for, number by number."""
    words, matrix = kept.extra[0].reshape(rows, -1), np.zeros((rows, -(-columns // 16) * 16), np.float32)
    values = kept.values.reshape(rows, -1, 8)
    for r in range(rows):
        for b in range(words.shape[1]):
            for k in range(8):
                matrix[r, 16 * b + 8 * (k // 4) + (words[r, b] >> (3 * k) & 7)] += values[r, b, k]
    return matrix[:, :columns]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (3, 8)])
@pytest.mark.parametrize("columns", [16, 24, 40])
def test_halves_stand_for_their_matrix(n, m, columns):
    matrix = n_of_m(5, columns, n, m).numpy()
    kept = compressed(matrix, "float32")
    assert kept.form == 2
    np.testing.assert_array_equal(read_back(kept, 5, columns), matrix)
    assert sum(a.nbytes for a in kept.arrays) <= (0.5 + 4 / 64) * 4 * 5 * (-(-columns // 16) * 16)


def test_the_cheapest_form_is_kept():
    some = torch.rand(32, 64, generator=torch.Generator().manual_seed(0))
    forms = {
        share: compressed(np.where(some < share, 1 + some, 0).astype(np.float32), "float32").form
        for share in (0.1, 0.4, 0.9)
    }
    assert forms == {0.1: 1, 0.4: 1, 0.9: 0}  # 5 of 8 occur: no halves
    assert compressed(n_of_m(32, 64, 1, 4).numpy(), "float32").form == 1
    assert compressed(n_of_m(32, 64, 2, 4).numpy(), "int8").form == 0  # halves of bytes are not faster


@needs_engine
@given(
    rows=st.integers(1, 11),
    eights=st.integers(1, 9),
    many=st.sampled_from([1, 2, 3]),
    values=st.sampled_from(["float32", "float16"]),
    kernels=st.sampled_from(["", "baseline"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_halves_multiply_as_torch_does(rows, eights, many, values, kernels, seed):
    layer, x = nn.Linear(8 * eights, rows), torch.randn(many, 8 * eights)
    layer.weight.data = n_of_m(rows, 8 * eights, 2, 4, seed)
    compiled = sc.compile(layer, x, threads=1, values=values, kernels=kernels)
    assert [layer.form for layer in compiled.report(seconds=0).layers if layer.macs] == ["four of every eight"]
    close = 1e-5 if values == "float32" else 2e-3
    np.testing.assert_allclose(compiled(x).numpy(), layer(x).detach().numpy(), rtol=close, atol=close * 10)


@needs_engine
def test_a_recurrent_layer_keeps_halves_too():
    torch.manual_seed(0)
    net, x = nn.LSTM(6, 24, batch_first=True), torch.randn(1, 7, 6)
    net.weight_hh_l0.data = n_of_m(96, 24, 2, 4)
    compiled = sc.compile(net, x, threads=1)
    assert any(step[0] == "recurrent" and step[2][2] == 2 for step in compiled.engine.programs[0].said["steps"])
    for found, expected in zip(compiled(x)[1], net(x)[1], strict=True):
        np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
