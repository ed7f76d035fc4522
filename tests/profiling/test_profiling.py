"""`profile` and `compare`: exact counts, bytes that match files, latency in turns, and a model left as it was."""

import copy
import gzip
import math

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import BadFile, WrongModel
from secateur.profiling.profile import compare, profile
from secateur.profiling.timing import measure, using_threads
from secateur.profiling.weighing import dense_nbytes, gzip_nbytes
from secateur.report import Latency, Profile, Pruned, Report


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


X = torch.zeros(1, 3, 8, 8)


def test_parameters_and_layers_by_hand():
    model = small()
    model[0].weight.data[:2] = 0  # 54 of 108
    found = profile(model, X, seconds=0)
    assert found.params == 112 + 8 + 725
    assert found.nonzeros == found.params - 54 - 4  # and the biases of the batch norm, which start at zero
    assert [(layer.name, layer.kind, layer.shape, layer.params, layer.macs) for layer in found.layers] == [
        ("0", "Conv2d", (4, 3, 3, 3), 112, 36 * 108),
        ("1", "BatchNorm2d", (4,), 8, 0),
        ("4", "Linear", (5, 144), 725, 720),
    ]
    assert found.macs == 36 * 108 + 720
    assert found.nonzero_macs == 36 * 54 + 720
    assert found.inputs == "[1, 3, 8, 8] float32"


def test_tied_weights_count_once_and_show_at_both_ends():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    found = profile(Net(), torch.zeros(1, 3, dtype=torch.long), seconds=0)
    assert found.params == 40
    assert [(layer.name, layer.params, layer.macs) for layer in found.layers] == [("embed", 40, 0), ("head", 0, 120)]
    assert found.layers[1].shape == (10, 4)
    assert found.dense_bytes < 40 * 4 + 100


@pytest.mark.parametrize("inputs", [X, (X,), [X], {"input": X}], ids=["tensor", "tuple", "list", "dict"])
def test_inputs_in_every_form(inputs):
    assert profile(small(), inputs, seconds=0).macs == 4608


def test_the_model_is_left_as_it_was():
    model = small().train()
    model[0].eval()
    model[4].weight.grad = torch.ones(5, 144)
    hooked = []
    model[4].register_forward_hook(lambda *_: hooked.append(1))
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    torch.manual_seed(3)
    profile(model, X, task=sc.Task(evaluate=lambda m: torch.rand(()).item()), seconds=0.01)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model[4].weight.grad, torch.ones(5, 144))
    assert all(p.requires_grad for p in model.parameters())
    assert len(model[4]._forward_hooks) == 1
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_failing_forward_leaves_no_hook_and_says_what_was_passed():
    with pytest.raises(WrongModel, match=r"Sequential did not run on example_inputs \[2, 7\] float32"):
        profile(small(), torch.zeros(2, 7))
    assert not nn.modules.module._global_forward_hooks
    assert torch.is_grad_enabled()


def test_lazy_layers_are_refused_by_name():
    with pytest.raises(WrongModel, match=r"'0\.weight' has no shape yet"):
        profile(nn.Sequential(nn.LazyLinear(3)))


def test_without_inputs_nothing_is_claimed():
    found = profile(small())
    assert found.macs is found.nonzero_macs is found.latency is None
    assert found.layers[0].macs is None
    assert "pass example_inputs=" in found.notes[0]


def test_the_meta_device_is_counted_and_says_so():
    found = profile(small().to("meta"), X.to("meta"))
    assert (found.params, found.macs, found.latency, found.gzip_bytes) == (845, 4608, None, None)
    assert found.dense_bytes == profile(small()).dense_bytes
    assert any("meta device" in note for note in found.notes)


def test_gzip_is_skipped_aloud(monkeypatch):
    monkeypatch.setattr("secateur.profiling.profile.GZIP_LIMIT", 100)
    found = profile(small())
    assert found.gzip_bytes is None
    assert any("gzip=True" in note for note in found.notes)
    assert profile(small(), gzip=True).gzip_bytes > 100
    assert profile(small(), gzip=False).gzip_bytes is None


def test_latency_has_spread_runs_and_threads():
    threads = torch.get_num_threads()
    found = profile(small(), X, seconds=0.05, threads=1).latency
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert found.runs >= 5
    assert (found.threads, found.device) == (1, "cpu")
    assert torch.get_num_threads() == threads


def test_candidates_take_turns():
    order = []
    found = measure([lambda: order.append("a"), lambda: order.append("b")], seconds=0)
    block = found[0].runs // 5
    tail = "".join(order[-10 * block :])
    assert tail == ("a" * block + "b" * block) * 5


def test_threads_come_back_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(KeyError), using_threads(1):
        raise KeyError
    assert torch.get_num_threads() == threads


def test_compare_takes_modules_profiles_and_pruned():
    model = small()
    pruned = sc.prune(model, sparsity=0.5)
    by_module = compare(model, pruned.model, X, seconds=0)
    assert compare(model, pruned, X, seconds=0).after == by_module.after
    assert compare(profile(model, X, seconds=0), pruned, X, seconds=0) == by_module
    assert isinstance(pruned, Pruned)


def test_compare_says_when_latencies_were_taken_apart():
    model = small()
    report = compare(profile(model, X, seconds=0.01), model, X, seconds=0.01)
    assert any("one after the other" in note for note in report.notes)
    assert not any("one after the other" in note for note in compare(model, model, X, seconds=0.01).notes)


def test_compare_scores_both_sides():
    model = small()
    empty = copy.deepcopy(model)
    empty[4].weight.data.zero_()
    report = compare(model, empty, task=sc.Task(evaluate=lambda m: int(m[4].weight.count_nonzero())))
    assert (report.before.score, report.after.score) == (720.0, 0.0)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.int8]


@given(
    sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.sampled_from(DTYPES)), max_size=6),
    names=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=6, max_size=6, unique=True
    ),
)
def test_bytes_are_those_of_the_file(sizes, names):
    named = {n: (torch.arange(a * b) % 2).reshape(a, b).to(t) for n, (a, b, t) in zip(names, sizes, strict=False)}
    file = safetensors.torch.save(named)
    assert dense_nbytes(named) == len(file)
    assert abs(gzip_nbytes(named) - len(gzip.compress(file, 6))) <= 16  # a name with quotes is escaped in another way


def test_gzip_is_that_of_the_file_exactly():
    named = small().state_dict()
    assert gzip_nbytes(named) == len(gzip.compress(safetensors.torch.save(named), 6))


def test_reports_come_back_from_json():
    report = compare(small(), sc.prune(small(), sparsity=0.5), X, seconds=0.01, settings={"sparsity": 0.5}, notes=["a"])
    assert Report.from_dict(report.to_dict()) == report
    assert Profile.from_dict(report.after.to_dict()) == report.after


def test_what_is_not_finite_becomes_text_and_comes_back():
    broken = Profile(model="Net", params=1, nonzeros=1, score=float("nan"))
    plain = Report(before=broken, after=broken, settings={"of": torch.float32}).to_json()
    assert '"nan"' in plain
    assert math.isnan(Profile.from_dict(broken.to_dict()).score)


@pytest.mark.parametrize("data", [{}, {"before": 1, "after": 2}, {"before": {"model": "x"}, "after": {}}, [], None])
def test_foreign_data_is_refused(data):
    with pytest.raises(BadFile, match="not a report"):
        Report.from_dict(data)


def test_overlap_is_symmetric():
    one = Latency(median_ms=2, low_ms=1, high_ms=3, runs=9, threads=1)
    other = Latency(median_ms=4, low_ms=3.5, high_ms=5, runs=9, threads=1)
    wide = Latency(median_ms=4, low_ms=2.5, high_ms=5, runs=9, threads=1)
    assert not one.overlaps(other)
    assert not other.overlaps(one)
    assert one.overlaps(wide)
    assert wide.overlaps(one)
