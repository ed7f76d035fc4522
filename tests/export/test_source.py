"""Generated source: read as Python, it narrows a new instance of the original class without this package."""

import runpy
import subprocess
import sys

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.export.source import _spell
from secateur.structure import Structure


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.width = 16
        self.conv = nn.Conv2d(3, self.width, 3, padding=1)
        self.norm = nn.BatchNorm2d(self.width)
        self.depth = nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.width)
        self.back = nn.ConvTranspose2d(self.width, 8, 2)
        self.group = nn.GroupNorm(4, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = self.depth(x).view(x.shape[0], self.width, -1, x.shape[3])
        return self.out(self.group(self.back(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        x = self.inside(x)
        return self.out(self.attention(x, x, x)[0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.cell = nn.LSTM(12, 16, num_layers=2, batch_first=True)
        self.out = nn.Linear(16, 20, bias=False)

    def forward(self, tokens):
        return self.out(self.cell(self.words(tokens))[0])


class TiedWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.body = nn.Linear(12, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(torch.relu(self.body(self.words(tokens))))


IMAGE, SERIES, TOKENS = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 6), torch.arange(10).view(2, 5)
CASES = {
    "conv": (Convolutions, IMAGE),
    "attention": (Attention, SERIES),
    "lstm": (Recurrent, TOKENS),
    "tied": (TiedWords, TOKENS),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    make, x = CASES[request.param]
    model = make().eval()
    return make, x, sc.prune(model, sparsity=0.5, granularity="channel", scope="layer", example_inputs=x)


def test_a_new_instance_is_narrowed_by_the_file_alone(case, tmp_path):
    make, x, pruned = case
    path = sc.export.source(pruned, tmp_path / "narrowed.py")
    narrow = runpy.run_path(str(path))["narrow"]
    fresh = narrow(make()).eval()
    fresh.load_state_dict(pruned.model.state_dict())
    assert torch.equal(fresh(x), pruned.model(x))
    fresh.train()(x).sum().backward()
    ours, theirs = dict(pruned.model.named_modules()), dict(fresh.named_modules())
    for name, module in ours.items():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | tuple) and k != "training"}
        there = vars(theirs[name])
        assert {k: there.get(k) for k in plain} == plain, name


def test_the_file_needs_torch_alone(case, tmp_path):
    _, _, pruned = case
    path = sc.export.source(pruned, tmp_path / "narrowed.py")
    program = f"import sys, runpy; runpy.run_path({str(path)!r}); print('secateur' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_the_file_is_tidy(case, tmp_path):
    _, _, pruned = case
    path = sc.export.source(pruned, tmp_path / "narrowed.py")
    chosen = ["check", "--isolated", "--select", "E,F,W,I", "--ignore", "E501", str(path)]
    found = subprocess.run([sys.executable, "-m", "ruff", *chosen], capture_output=True, text=True, check=False)
    if "No module named ruff" in found.stderr:
        pytest.skip("ruff is not installed here")
    assert found.returncode == 0, found.stdout


def test_the_docstring_says_the_widths(tmp_path):
    torch.manual_seed(0)
    pruned = sc.prune(Convolutions(), sparsity=0.5, granularity="channel", scope="layer", example_inputs=IMAGE)
    doc = runpy.run_path(str(sc.export.source(pruned, tmp_path / "narrowed.py")))["__doc__"]
    assert "conv.weight   16 x 3 x 3 x 3 -> 8 x 3 x 3 x 3" in doc
    assert doc.startswith("Convolutions, narrowed")


def test_another_network_is_refused_before_anything_is_cut(tmp_path):
    pruned = sc.prune(Convolutions(), sparsity=0.5, granularity="channel", scope="layer", example_inputs=IMAGE)
    narrow = runpy.run_path(str(sc.export.source(pruned, tmp_path / "narrowed.py")))["narrow"]
    other = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"conv\.weight should have shape \(16, 3, 3, 3\) and is missing"):
        narrow(other)
    thin = narrow(Convolutions())
    with pytest.raises(ValueError, match=r"and is \(8, 3, 3, 3\)"):
        narrow(thin)


def test_a_model_that_was_not_narrowed_is_refused_and_the_old_file_stays(tmp_path):
    (tmp_path / "narrowed.py").write_text("old")
    with pytest.raises(sc.errors.WrongModel, match="was not narrowed"):
        sc.export.source(Convolutions(), tmp_path / "narrowed.py")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("kept", [(0,), (3, 4), (0, 1, 2), (0, 2, 3, 4, 9), tuple(range(5, 40))])
def test_indices_are_spelled_so_that_python_reads_them(kept):
    assert tuple(eval(_spell(kept))) == kept


def test_names_that_collide_are_told_apart():
    from secateur.export.source import _shared

    shapes = {"a.b": (4, 4), "a_b": (4,), "kept": (4,)}
    structure = Structure(shapes=shapes, kept={"a.b": {0: (0,), 1: (1,)}, "a_b": {0: (2,)}, "kept": {0: (3,)}})
    names, lists = _shared(structure)
    assert len(set(names.values())) == len(lists) == 4
    assert not {"KEPT", "SHAPES", "SIZES"} & set(names.values())
