"""ONNX files: equal to torch, smaller when narrowed, whole or not there at all."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ExportFailed, NeedsPackage

HERE = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
needs_onnx = pytest.mark.skipif(
    not HERE, reason="onnx and onnxruntime are not installed: pip install 'secateur[export]'"
)
noisy = pytest.mark.filterwarnings("ignore")  # of the exporters and their packages


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.second, self.out = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.out((x + self.second(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.attention = nn.Embedding(20, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, tokens, scale):
        x = self.words(tokens)
        return {"scores": self.out(self.attention(x, x, x)[0]) * scale, "tokens": tokens + 1}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(6, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        return self.out(self.cell(x)[0])


CASES = {
    "conv": (Convolutions, torch.randn(2, 3, 8, 8)),
    "attention": (Attention, {"scale": torch.tensor(2.0), "tokens": torch.arange(10).view(2, 5)}),
    "lstm": (Recurrent, (torch.randn(2, 5, 6),)),
}


@noisy
@needs_onnx
@pytest.mark.parametrize("name", CASES)
def test_narrowed_models_are_equal_and_smaller(name, tmp_path):
    torch.manual_seed(0)
    make, x = CASES[name]
    model = make()
    pruned = sc.prune(model, sparsity=0.5, granularity="channel", scope="layer", example_inputs=x)
    whole = sc.export.onnx(model, x, tmp_path / "whole.onnx")
    narrow = sc.export.onnx(pruned, x, tmp_path / "narrow.onnx")
    assert narrow.difference <= 1e-4
    assert whole.difference <= 1e-4
    assert narrow.nbytes == narrow.path.stat().st_size
    assert narrow.nbytes < whole.nbytes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["narrow.onnx", "whole.onnx"]
    assert model.training


@noisy
@needs_onnx
def test_without_the_package_of_the_new_exporter_the_old_one_serves(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        sys.modules["secateur.export.onnx"], "find_spec", lambda n: None if n == "onnxscript" else found(n)
    )
    torch.manual_seed(0)
    assert sc.export.onnx(Convolutions(), torch.randn(2, 3, 8, 8), tmp_path / "m.onnx").difference <= 1e-4


class Drifting(nn.Module):
    """Computes something else each time it is looked at."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) + self.calls


class Impossible(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real if float(x.sum()) > 0 else x


@noisy
@needs_onnx
@pytest.mark.parametrize("make", [Drifting, Impossible])
def test_what_cannot_be_exported_leaves_the_old_file(make, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with pytest.raises(ExportFailed):
        sc.export.onnx(make(), torch.eye(4), path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("m.onnx", "old")]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["secateur.export.onnx"], "find_spec", lambda name: None if name == "onnx" else True)
    with pytest.raises(NeedsPackage, match=r"onnx is not installed: pip install 'secateur\[export\]'"):
        sc.export.onnx(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_no_single_file_can_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["secateur.export.onnx"], "find_spec", lambda name: True)
    with torch.device("meta"):
        model = nn.Linear(1 << 15, 1 << 15)
    with pytest.raises(ExportFailed, match=r"4\.0 GiB of weights"):
        sc.export.onnx(model, torch.zeros(1, 1 << 15), tmp_path / "m.onnx")
