"""Batches: whose rows run one by one, and whether that changes anything."""

import threading

import pytest
import torch
from torch import nn

import secateur as sc
import secateur_engine
from secateur_engine import BadInput

pytestmark = pytest.mark.skipif(not secateur_engine.available(), reason="the compiled engine is missing")


def convolutions():
    """Planes of a megabyte, few weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 5, 1)
    ).eval()


def sizes_of(compiled):
    return sorted(program.size for program in compiled.engine.programs)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_large_planes_run_one_by_one(threads):
    model, x = convolutions(), torch.randn(8, 3, 96, 96)
    compiled = sc.compile(model, x, threads=threads)
    assert sizes_of(compiled) == [1]
    assert any("rows of a batch" in note for note in compiled.report(seconds=0, dense=False).notes)
    for rows in (8, 1, 3):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x[:rows]), model(x[:rows]), rtol=1e-4, atol=1e-5)


def test_a_batch_of_vectors_reads_its_weights_once():
    model, x = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 10)).eval(), torch.randn(512, 512)
    assert sizes_of(sc.compile(model, x, threads=1)) == [512]


def test_small_batches_and_rows_that_mind_each_other_stay_together():
    assert sizes_of(sc.compile(convolutions(), torch.randn(2, 3, 16, 16), threads=1)) == [2]

    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = convolutions()

        def forward(self, x):
            return self.net(x - x.mean(0, keepdim=True))

    x = torch.randn(8, 3, 96, 96)
    compiled = sc.compile(model := Centred().eval(), x, threads=2)
    assert sizes_of(compiled) == [8]
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="compile with batch=4"):
        compiled(x[:4])


class Shifted(nn.Module):
    """Rows that mind each other in a way that two rows do not show."""

    def __init__(self, how):
        super().__init__()
        self.how, self.net = how, nn.Conv2d(3, 24, 3, padding=1)

    def forward(self, x):
        y = self.net(x)
        if self.how == "roll":
            return torch.roll(y, 2, 0)
        if self.how == "first":
            return y * (torch.arange(len(y)).view(-1, 1, 1, 1) < 2)
        if self.how == "shorter":
            return y[2:] if len(y) > 2 else y
        if self.how == "joined":
            return torch.cat([y[:2], y[2:] * 2])
        return y / max(2, len(y))


@pytest.mark.parametrize("how", ["roll", "first", "shorter", "joined", "divided"])
def test_rows_that_mind_each_other_where_two_do_not_show_it(how):
    model = Shifted(how).eval()
    for size in (16, 128):
        x = torch.randn(16, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(sc.compile(model, x, threads=1)(x), model(x), rtol=1e-4, atol=1e-5)
    compiled = sc.compile(model, torch.randn(1, 3, 16, 16), batch=(3, 8), threads=1)
    for rows in (3, 7):
        x = torch.randn(rows, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_inputs_of_unequal_batches_are_refused():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + 2 * b

    compiled = sc.compile(Sum(), (torch.randn(2, 4), torch.randn(2, 4)), batch=(1, 8))
    with pytest.raises(BadInput, match="input 1 has 3 along axis 0, and an input before it has 2"):
        compiled(torch.randn(2, 4), torch.randn(3, 4))


def test_a_range_needs_no_other_programs_then():
    assert sizes_of(sc.compile(convolutions(), torch.randn(1, 3, 96, 96), batch=(1, 16), threads=1)) == [1]
    assert sizes_of(sc.compile(nn.Linear(64, 64).eval(), torch.randn(1, 64), batch=(1, 4), threads=1)) == [1, 2, 4]


def test_rows_side_by_side_from_several_callers(tmp_path):
    """Each call has threads of its own; what is loaded does the same, and an error of one row reaches the caller."""
    model, x = convolutions(), torch.randn(8, 3, 96, 96)
    sc.compile(model, x, threads=2).save(tmp_path / "model.sc")
    served = secateur_engine.load(tmp_path / "model.sc", threads=2)
    with torch.no_grad():
        expected = model(x)
    found = [None] * 4

    def call(k):
        found[k] = served(x.numpy())

    callers = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    for one in found:
        torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-4, atol=1e-5)


def test_an_error_in_one_row_reaches_the_caller():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = convolutions()

        def forward(self, x):
            flat = self.net(x)[:, :1, :4, :4] * 0
            return torch.linalg.cholesky(flat + torch.eye(4) * (10 - x[:, :1, :1, :1]))

    x = torch.rand(8, 3, 96, 96) + 0.5
    compiled = sc.compile(model := Strange().eval(), x, threads=2)  # cholesky runs in torch
    assert sizes_of(compiled) == [1]
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    x[5] = 100
    with pytest.raises(RuntimeError, match="cholesky"):
        compiled(x)
