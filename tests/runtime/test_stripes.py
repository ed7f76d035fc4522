"""Stripes change when rows are computed, never what they are."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from engine_zoo import NETS, apart, example, sparse_
from hypothesis import given, settings
from torch import nn

import secateur as sc
import secateur_engine

pytestmark = pytest.mark.skipif(not secateur_engine.available(), reason="the compiled engine is missing")
CLOSE = 1e-5


def stripes_of(compiled):
    return [step[2] for step in compiled.engine.programs[0].said["steps"] if step[0] == "stripes"]


def block(ins, wide, outs, *, stride=1, act=nn.ReLU6):
    return nn.Sequential(
        nn.Conv2d(ins, wide, 1),
        nn.BatchNorm2d(wide),
        act(),
        nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide),
        act(),
        nn.Conv2d(wide, outs, 1),
    )


class Bottleneck(nn.Module):
    def __init__(self, ins, wide, outs, stride):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(ins, wide, 1),
            nn.Conv2d(wide, wide, 3, stride=stride, padding=1),
            nn.Conv2d(wide, outs, 1),
        )
        self.side = nn.Conv2d(ins, outs, 1, stride=stride)

    def forward(self, x):
        return torch.relu(self.side(x) + self.c(torch.relu(self.b(torch.relu(self.a(x))))))


CHAINS = {
    "expand, depthwise, project": (block(6, 16, 6), (1, 6, 16, 17)),
    "every other row": (block(6, 16, 6, stride=2), (2, 6, 17, 16)),
    "activations of their own": (block(6, 16, 6, act=nn.SiLU), (1, 6, 13, 9)),
    "bottlenecks": (
        nn.Sequential(Bottleneck(8, 4, 12, 1), Bottleneck(12, 6, 16, 2), Bottleneck(16, 4, 8, 1)),
        (2, 8, 12, 14),
    ),
    "pooling": (
        nn.Sequential(
            nn.Conv2d(3, 6, 7, stride=2, padding=3),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(3, 1, 1),
            nn.Conv2d(8, 5, 1),
        ),
        (1, 3, 36, 28),
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("rows", [1, 3])
def test_every_operation_in_stripes(name, rows):
    torch.manual_seed(0)
    make, said, *_ = NETS[name]
    model, x = sparse_(make()), example(said)
    args = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        expected = model(*args)
    for threads in (1, 2):
        assert apart(sc.compile(model, args, threads=threads, stripes=rows)(*args), expected) <= CLOSE


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_chains_of_any_height(name, threads):
    torch.manual_seed(0)
    model, shape = CHAINS[name]
    x = torch.randn(shape)
    model = sparse_(model)
    expected = model(x).detach()
    for rows in (1, 2, 3, 5, 100):
        compiled = sc.compile(model, x, threads=threads, stripes=rows)
        assert rows == 100 or stripes_of(compiled), "nothing ran in stripes"
        for _ in range(2):  # what the last call left behind is not read
            assert apart(compiled(x), expected) <= CLOSE


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_random_chains(data):
    layers, channels = [], data.draw(st.integers(1, 6), label="channels")
    first = channels
    for _ in range(data.draw(st.integers(2, 5), label="layers")):
        kernel = data.draw(st.sampled_from([1, 2, 3, 5]))
        dilation, stride = data.draw(st.sampled_from([1, 1, 2])), data.draw(st.sampled_from([1, 1, 1, 2]))
        padding = data.draw(st.integers(0, dilation * (kernel - 1)))
        wide = data.draw(st.booleans())
        outs = channels if wide else data.draw(st.integers(1, 8))
        layers.append(
            nn.Conv2d(
                channels, outs, kernel, stride, padding, dilation, groups=channels if wide and outs == channels else 1
            )
        )
        layers.append(data.draw(st.sampled_from([nn.ReLU(), nn.Hardswish(), nn.Identity(), nn.MaxPool2d(2, 1)])))
        channels = outs
    shape = (data.draw(st.sampled_from([1, 1, 2, 3])), first, *(data.draw(st.integers(18, 34)) for _ in range(2)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model, x = sparse_(nn.Sequential(*layers), 0.4), torch.randn(shape)
    try:
        expected = model(x).detach()
    except RuntimeError:  # planes became smaller than a kernel
        return
    compiled = sc.compile(
        model, x, threads=data.draw(st.sampled_from([1, 2])), stripes=data.draw(st.integers(1, 9), label="rows")
    )
    assert apart(compiled(x), expected) <= CLOSE


def test_rows_that_a_stripe_needs_are_those_of_the_taps():
    """Eight rows out of a 3x3 convolution with stride 2: of its input 17, the first one above the stripe."""
    model = sparse_(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)), 0)
    compiled = sc.compile(model, torch.randn(1, 4, 48, 20), threads=1, stripes=8)
    stripes, first, border, depthwise, kept, follow, *_ = compiled.engine.programs[0].said["steps"][1:]
    assert stripes[2][:5] == [3, 4, 1, 3, 8]
    assert border[2][2:] == [
        17,
        -1,
        2,
        48,
    ]  # rows, the first one's number, rows for a row of the output, rows of the image
    pitch = border[1][0][4][2]
    assert first[1][1][3] == [4, 16 * pitch + 20]
    assert follow[1][1][3] == [4, 15 * pitch + 20]  # one row is there already
    assert kept[1][0][3] == [4, pitch]
    assert depthwise[1][1][3] == [1, 4, 8, 10]


def test_large_planes_run_in_stripes_and_small_ones_do_not():
    torch.manual_seed(0)
    large, small = sparse_(block(16, 96, 24), 0.9), sparse_(block(16, 32, 16), 0.9)
    x, y = torch.randn(1, 16, 112, 112), torch.randn(1, 16, 28, 28)
    with_, without = (sc.compile(large, x, threads=1, stripes=on) for on in (True, False))
    assert stripes_of(with_)
    assert not stripes_of(without)
    assert not stripes_of(sc.compile(small, y, threads=1))
    np.testing.assert_allclose(with_(x.numpy()), without(x.numpy()), rtol=1e-5, atol=1e-5)
    sizes = [c.engine.programs[0].said["arena"] + c.engine.programs[0].said["local"] for c in (with_, without)]
    assert sizes[0] < 0.6 * sizes[1]  # what passes between the layers is never there as a whole


def test_a_file_runs_in_stripes_with_any_number_of_threads(tmp_path):
    torch.manual_seed(0)
    model, x = sparse_(CHAINS["bottlenecks"][0]), torch.randn(CHAINS["bottlenecks"][1])
    sc.compile(model, x, threads=1, stripes=3).save(tmp_path / "model.sc")
    expected = model(x).detach()
    for threads in (1, 2, 5):
        loaded = sc.runtime.load(tmp_path / "model.sc", threads=threads)
        assert apart(torch.from_numpy(loaded(x.numpy())), expected) <= CLOSE


def test_the_report_names_every_layer_once():
    torch.manual_seed(0)
    model, x = sparse_(block(6, 16, 6)), torch.randn(1, 6, 16, 17)
    plain, striped = (sc.compile(model, x, threads=1, stripes=rows).report(seconds=0.05) for rows in (False, 5))
    weighed = [[(layer.name, layer.macs) for layer in report.layers if layer.macs] for report in (plain, striped)]
    assert weighed[0] == weighed[1]
    assert "3 stripes of 5 rows" in [layer.kernel for layer in striped.layers]
    assert plain.sparsity == striped.sparsity
    assert all(layer.ms >= 0 for layer in striped.layers)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_no_number_stays_where_torch_has_it(poison):
    torch.manual_seed(0)
    model, x = sparse_(nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)]), 0), torch.randn(1, 3, 20, 20)
    compiled = sc.compile(model, x, threads=1, stripes=3)
    assert torch.isfinite(compiled(x)).all()
    y = x.clone()
    y[0, 1, 9, 9] = poison
    assert torch.equal(torch.isfinite(compiled(y)), torch.isfinite(model(y)))
    assert torch.isfinite(compiled(x)).all()  # nothing of it is left


@pytest.mark.parametrize("rows", [-1, 2.5, "8", None])
def test_stripes_are_a_number_of_rows(rows):
    with pytest.raises(sc.errors.UnknownName, match="stripes="):
        sc.compile(nn.Linear(2, 2), torch.randn(1, 2), stripes=rows)
