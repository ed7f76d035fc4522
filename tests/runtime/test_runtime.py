"""The engine computes what torch does: every operation, every form of weights, batches, threads, files, caches."""

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.runtime.engine_zoo import CACHED, NETS, Decoder, Masked, apart, example, sparse_
from torch import nn

import secateur as sc
import secateur_engine
from secateur.runtime.compiling import _placed
from secateur.runtime.views import Buffer

CLOSE = 2e-5
needs_engine = pytest.mark.skipif(not secateur_engine.available(), reason="the compiled engine is missing")


@needs_engine
@pytest.mark.parametrize("name", NETS)
def test_every_operation(name):
    make, said = NETS[name]
    torch.manual_seed(0)
    model, x = sparse_(make()), example(said)
    with torch.no_grad():
        expected = model(x)
    fast = sc.compile(model, x, threads=2 if name in ("joined", "convnext") else 1)
    assert apart(fast(x), expected) <= CLOSE
    assert apart(fast(x), expected) <= CLOSE  # nothing of the first call is left over
    notes = fast.report(seconds=0, dense=False).notes
    assert bool(notes) == (name == "strange")
    assert name != "strange" or "cumsum" in notes[0]


@needs_engine
@pytest.mark.parametrize("form", ["1", "2", "4", "dense"])
@pytest.mark.parametrize("kernels", ["baseline", "avx2", "avx512"])
def test_every_form_on_every_instruction_set(form, kernels):
    if not secateur_engine.available(kernels):
        pytest.skip(f"this machine lacks {kernels}")
    torch.manual_seed(0)
    model = sparse_(
        nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.GELU(), nn.Conv2d(10, 7, 1), nn.BatchNorm2d(7)), 0.7
    )
    x = example((2, 6, 13, 11))
    fast = sc.compile(model, x, form=form, kernels=kernels, threads=1)
    with torch.no_grad():
        assert apart(fast(x), model(x)) <= CLOSE
    assert fast.report(seconds=0).kernels == kernels


@needs_engine
@given(
    ins=st.integers(1, 20), outs=st.integers(1, 20), height=st.integers(1, 20), width=st.integers(1, 40), kernel=st.integers(1, 4),
    stride=st.integers(1, 3), padding=st.integers(0, 3), dilation=st.integers(1, 2), batch=st.integers(1, 3),
    sparsity=st.sampled_from([0, 0.3, 0.8, 0.95, 1.0]), blocks=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99), threads=st.sampled_from([1, 2]),
)  # fmt: skip
@settings(max_examples=40)
def test_convolutions_of_any_shape(
    ins, outs, height, width, kernel, stride, padding, dilation, batch, sparsity, blocks, seed, threads
):
    assume(min(height, width) + 2 * padding > dilation * (kernel - 1))
    torch.manual_seed(seed)
    model = sparse_(
        nn.Sequential(nn.Conv2d(ins, outs, kernel, stride=stride, padding=padding, dilation=dilation), nn.ReLU()),
        sparsity,
        blocks,
        seed,
    )
    x = torch.randn(batch, ins, height, width)
    with torch.no_grad():
        assert apart(sc.compile(model, x, threads=threads)(x), model(x)) <= CLOSE


@needs_engine
@pytest.mark.parametrize("stride", [(1, 3), (2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize(("height", "padding"), [(1, (1, 1)), (1, (2, 0)), (2, (2, 0)), (4, (0, 1)), (4, (1, 1))])
def test_depthwise_convolutions_step_apart_along_both_axes(stride, height, padding):
    """One row in, with rows of zeros around it, gives several out: only a single row out has no stride of its own."""
    torch.manual_seed(0)
    model, x = nn.Conv2d(4, 4, 3, stride, padding, groups=4).eval(), torch.randn(3, 4, height, 7)
    with torch.no_grad():
        assert apart(sc.compile(model, x, threads=1)(x), model(x)) <= CLOSE


@needs_engine
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(7, 34), nn.Conv1d(5, 7, 2, padding=1)), (2, 5, 7)),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(10, 18, (3, 2), 1, (2, 1), 2, 2)), (3, 10, 2, 4)),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(4, 10, (2, 4), (2, 1), (3, 1), 2)), (2, 4, 14, 18)),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(24, 2, (4, 1), (1, 3), (3, 1)), nn.MaxPool2d(1, 2)), (1, 24, 7, 30)),
        (
            nn.Sequential(nn.ReLU(), nn.Conv2d(6, 13, 1, (2, 1), 1), nn.Conv2d(13, 13, (1, 3), 1, (3, 1), groups=13)),
            (1, 6, 15, 24),
        ),
        (nn.Sequential(nn.Tanh(), nn.Conv2d(10, 20, (1, 4), 1, 3, groups=10)), (1, 10, 3, 24)),
        (nn.Sequential(nn.Conv2d(7, 14, (1, 4), (2, 1), 2, groups=7), nn.Conv2d(14, 19, 1, 1, (3, 0))), (3, 7, 3, 21)),
        (nn.Sequential(nn.AvgPool2d(3, 2), nn.Conv2d(6, 3, (3, 1), (1, 3), (2, 3), groups=3)), (2, 6, 12, 19)),
    ],
)
@pytest.mark.parametrize("stripes", [True, False, 2])
def test_zeros_around_what_lies_as_no_planes_and_around_stripes(model, shape, stripes):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert apart(sc.compile(model.eval(), x, threads=1, stripes=stripes)(x), model(x)) <= CLOSE


@needs_engine
@given(tokens=st.integers(1, 40), ins=st.integers(1, 70), outs=st.integers(1, 70), sparsity=st.sampled_from([0, 0.5, 0.9, 1.0]), values=st.sampled_from(["float32", "float16", "int8"]), seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=40)
def test_linear_layers_of_any_shape(tokens, ins, outs, sparsity, values, seed):
    torch.manual_seed(seed)
    model = sparse_(nn.Sequential(nn.Linear(ins, outs), nn.Tanh()), sparsity, seed=seed)
    x = torch.randn(tokens, ins)
    with torch.no_grad():
        expected = model(x)
    found = sc.compile(model, x, values=values, threads=1)(x)
    assert float((found - expected).abs().max()) <= {"float32": 1e-5, "float16": 5e-3, "int8": 0.05}[values] * (
        1 + ins**0.5
    )


@needs_engine
def test_masks_and_products_of_activations():
    model, x = sparse_(Masked()), torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    keep = torch.ones(2, 9, dtype=torch.int64)
    keep[:, 7:] = 0
    fast = sc.compile(model, (x, keep), threads=1)
    with torch.no_grad():
        assert apart(fast(x, keep), model(x, keep)) <= CLOSE
    assert not fast.report(seconds=0).notes


@needs_engine
def test_generation_with_caches_equals_the_whole_sequence():
    torch.manual_seed(0)
    model, (ids, positions) = sparse_(Decoder()), CACHED
    with torch.no_grad():
        expected = model(ids, positions)
    fast = sc.compile(model, (ids[:, :4], positions[:, :4]), cache=24, batch=(1, 8), threads=1)
    session = fast.session()
    cuts = [0, 8, 13, *range(14, 21)]
    parts = [session(ids[:, a:b], positions[:, a:b]) for a, b in itertools.pairwise(cuts)]
    assert apart(torch.cat(parts, 1), expected) <= CLOSE
    assert session.position == 20
    with pytest.raises(secateur_engine.BadInput, match="24 tokens"):
        session(ids[:, :8], positions[:, :8])
    assert apart(sc.compile(model, (ids, positions), threads=2)(ids, positions), expected) <= CLOSE
    with pytest.raises(secateur_engine.BadInput, match="cache="):
        sc.compile(model, (ids, positions), threads=1).session()


@needs_engine
def test_batches_are_put_together(tmp_path):
    model, x = sparse_(NETS["squeezed"][0]()), example((7, 6, 13, 11))
    fast = sc.compile(model, x[:1], batch=(1, 4), threads=1)
    with torch.no_grad():
        for size in (1, 2, 7):
            assert apart(fast(x[:size]), model(x[:size])) <= CLOSE
    fixed = sc.compile(model, x[:2], threads=1)
    with pytest.raises(secateur_engine.BadInput, match="batch=3"):
        fixed(x[:3])
    with pytest.raises(secateur_engine.BadInput, match="shape"):
        fixed(x[:2, :, :5])


@needs_engine
def test_a_pruned_model_compiles_and_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1))
    x = torch.randn(1, 3, 12, 12)
    pruned = sc.prune(model, "magnitude", sparsity=0.9, granularity="block:4x1", ignore=["0"])
    before = {name: p.clone() for name, p in pruned.model.named_parameters()}
    fast = sc.compile(pruned, x, threads=1)
    report = fast.report(seconds=0)
    assert [layer.form for layer in report.layers if layer.kind.startswith("conv")] == ["all weights", "4x1 blocks"]
    assert 0 < report.sparsity < 0.9
    assert "4x1 blocks" in str(report)
    assert all(torch.equal(p, before[name]) for name, p in pruned.model.named_parameters())


@needs_engine
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_infinity_spread_as_in_torch(poison):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.Sigmoid()
    ).eval()
    x = torch.randn(1, 3, 8, 8)
    x[0, 1, 3, 3] = poison
    with torch.no_grad():
        expected, found = model(x), sc.compile(model, x, threads=1)(x)
    assert torch.equal(found.isnan(), expected.isnan())
    clean = torch.randn(1, 3, 8, 8)
    fast = sc.compile(model, x, threads=1)
    fast(x)
    assert not fast(clean).isnan().any()  # what was poisoned before is not read again


@needs_engine
def test_threads_may_call_one_model():
    model, x = sparse_(NETS["joined"][0]()), example((2, 6, 13, 11))
    fast = sc.compile(model, x, threads=2)
    with torch.no_grad():
        inputs = [x * k for k in range(1, 5)]
        expected = [model(i) for i in inputs]
    differences = []

    def call(k):
        differences.extend(apart(fast(inputs[k]), expected[k]) for _ in range(20))

    workers = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(differences) == 80
    assert max(differences) <= CLOSE


@needs_engine
def test_tuning_changes_nothing_but_time(tmp_path):
    torch.manual_seed(0)
    model, x = (
        sparse_(nn.Sequential(nn.Conv2d(80, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 30, 1)), 0.9),
        torch.randn(1, 80, 9, 9),
    )
    fast = sc.compile(model, x, threads=2, tune=True)
    with torch.no_grad():
        assert apart(fast(x), model(x)) <= CLOSE
    fast.save(tmp_path / "tuned.sc")
    again = sc.runtime.load(tmp_path / "tuned.sc", threads=2)
    assert [layer.kernel for layer in again.report(seconds=0).layers] == [
        layer.kernel for layer in fast.report(seconds=0).layers
    ]
    assert apart(torch.from_numpy(again(x.numpy())), model(x).detach()) <= CLOSE


@needs_engine
def test_serving_imports_no_torch(tmp_path):
    torch.manual_seed(0)
    model, x = sparse_(NETS["convnext"][0]()), example((2, 6, 32, 40))
    sc.compile(model, x, threads=1).save(tmp_path / "model.sc")
    np.save(tmp_path / "x.npy", x.numpy())
    program = (
        "import sys; sys.modules['torch'] = None; import numpy as np, secateur_engine;"
        f"model = secateur_engine.load({str(tmp_path / 'model.sc')!r});"
        f"np.save({str(tmp_path / 'y.npy')!r}, model(np.load({str(tmp_path / 'x.npy')!r})))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with torch.no_grad():
        assert apart(torch.from_numpy(np.load(tmp_path / "y.npy")), model(x)) <= CLOSE


def test_without_the_compiled_part_it_runs_in_torch(monkeypatch):
    monkeypatch.setattr("secateur_engine.program._engine", None)
    model, x = sparse_(NETS["mlp"][0]()), example((1, 6, 10))
    fast = sc.compile(model, x)
    with torch.no_grad():
        assert apart(fast(x), model(x)) <= CLOSE
        assert apart(torch.from_numpy(fast(x.numpy())), model(x)) <= CLOSE
    assert fast.report().kernels == "torch"
    assert "missing" in str(fast.report())
    with pytest.raises(sc.errors.UnknownOperation, match="engine"):
        fast.save("nowhere")


@needs_engine
def test_mistakes_are_named():
    x = torch.randn(1, 4)
    with pytest.raises(sc.errors.UnknownName, match="int4"):
        sc.compile(nn.Linear(4, 4), x, values="int4")
    with pytest.raises(sc.errors.WrongModel, match="did not run"):
        sc.compile(nn.Linear(5, 4), x)
    with pytest.raises(sc.errors.UnknownOperation, match=r"float64|complex"):
        sc.compile(Complex(), x)
    with pytest.raises(secateur_engine.BadInput, match="50 rows"):
        sc.compile(NETS["encoder"][0]().eval(), torch.zeros(1, 4, dtype=torch.int64), threads=1)(torch.full((1, 4), 50))


class Complex(nn.Module):
    def forward(self, x):
        return torch.view_as_real(torch.complex(x, x) * 2)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=20))
def test_buffers_that_live_together_lie_apart(pieces):
    buffers = [Buffer(size, first, first + more) for size, first, more in pieces]
    total = _placed(buffers)
    for k, a in enumerate(buffers):
        assert 0 <= a.offset <= total - a.size
        for b in buffers[:k]:
            together = a.first <= b.last and b.first <= a.last
            assert not together or a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
