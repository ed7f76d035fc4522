"""The command line: pure JSON, one line an error, exit codes, files that stay whole and are never somebody else's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import secateur
from secateur.cli import main

NETS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def tokens():
    return nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(40, 2))

def broken():
    raise RuntimeError("the weights\\nare elsewhere")

x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
y = (x.sum(1) > 0).long()
batches = [(x[:16], y[:16]), (x[16:], y[16:])]

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def evaluate(model):
    return (model(x).argmax(1) == y).float().mean().item()
"""
RECIPE = """
[model]
path = "cli_nets:make"
example_inputs = "1x6"
[task]
batches = "cli_nets:batches"
loss = "cli_nets:loss"
evaluate = "cli_nets:evaluate"
[prune]
sparsity = 0.5
[output]
model = "out.safetensors"
report = "out.json"
html = "out.html"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "cli_nets.py").write_text(NETS)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    yield tmp_path
    sys.modules.pop("cli_nets", None)


@pytest.fixture
def call(capsys):
    """Run a command; returns exit code, stdout, stderr."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(code), out, err

    return run


@pytest.fixture
def pruned(call):
    assert call("prune", "recipe.toml")[0] == 0


def test_prune_prints_the_receipt_and_writes_its_files(call, folder):
    code, out, err = call("prune", "recipe.toml")
    assert code == 0
    assert "Sequential" in out
    assert {path.name for path in folder.glob("out.*")} == {"out.safetensors", "out.json", "out.html"}
    assert "out.html" in err
    assert (
        json.loads((folder / "out.json").read_text())["report"]["after"]["nonzeros"] == 72 // 2 + 8 + 8 + 3
    )  # half the weights, biases, norm scales (norm shifts start at zero), biases


def test_check_validates_and_writes_nothing(call, folder):
    code, out, _ = call("prune", "recipe.toml", "--check")
    assert (code, "valid" in out) == (0, True)
    assert not list(folder.glob("out.*"))


def test_a_recipe_that_prunes_nothing_says_so_and_exits_3(call, folder):
    (folder / "recipe.toml").write_text(RECIPE.replace("0.5", "0.0").partition("[output]")[0])
    code, _, err = call("prune", "recipe.toml")
    assert (code, "nothing was removed" in err) == (3, True)


def test_all_mistakes_of_a_recipe_one_line_each_before_anything_runs(call, folder):
    (folder / "recipe.toml").write_text(
        RECIPE.replace("0.5", "90").replace("loss", "lozz").replace("cli_nets:make", "cli_nets:broken")
    )
    code, out, err = call("prune", "recipe.toml")
    lines = err.splitlines()
    assert (code, out) == (2, "")
    assert all(line.startswith("error: ") for line in lines)
    assert {line.split(": ")[1] for line in lines} == {"task.lozz", "prune.sparsity"}


def commands(folder):
    yield from (
        ["prune", "recipe.toml", "--check"],
        ["prune", "recipe.toml"],
        [
            "profile",
            "cli_nets:make",
            "--input",
            "1x6",
            "--evaluate",
            "cli_nets:evaluate",
            "--weights",
            "out.safetensors",
        ],
        ["profile", "cli_nets:tokens", "--input", "2x10:int64"],
        ["compare", "cli_nets:make", "out.safetensors", "--input", "1x6", "--html", "compare.html"],
        ["inspect", "out.safetensors"],
        ["report", "out.json"],
        ["report", "out.safetensors"],
        ["sensitivity", "cli_nets:make", "--evaluate", "cli_nets:evaluate"],
    )


def test_json_is_pure_and_says_where_it_is_from(call, folder):
    for arguments in commands(folder):
        code, out, _ = call(*arguments, "--json")
        values = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert code == 0, arguments
        assert (values["secateur"], values["command"]) == (secateur.__version__, arguments[0])


def test_every_command_prints_something_for_people_too(call, folder):
    for arguments in commands(folder):
        code, out, _ = call(*arguments)
        assert code == 0, arguments
        assert out.strip(), arguments


def test_errors_in_json_too(call):
    code, out, err = call("inspect", "nowhere.safetensors", "--json")
    values = json.loads(out)
    assert (code, values["exit_code"], values["error"]) == (1, 1, "FileNotFoundError")
    assert "nowhere.safetensors" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["profile", "cli_nets:broken"], 1, "RuntimeError: the weights are elsewhere"),
        (["profile", "cli_nets:nothing"], 1, "has no 'nothing'"),
        (["profile", "no_such_module_here:make"], 1, "cannot import"),
        (["profile", "cli_nets:make", "--input", "1x"], 2, "is no input"),
        (["profile", "cli_nets:make", "--input", "1x7"], 1, "Sequential"),
        (["profile"], 2, "MODEL"),
        (["profile", "cli_nets:make", "--inptu", "1x6"], 2, "--inptu"),
        (["prone"], 2, "prone"),
        (["prune", "nowhere.toml"], 2, "nowhere.toml"),
        (["report", "cli_nets.py"], 1, "not JSON"),
        (["inspect", "cli_nets.py"], 1, "cli_nets.py"),
    ],
)
def test_an_error_is_one_line_without_traceback(call, arguments, code, says):
    got, out, err = call(*arguments)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert says in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_debug_shows_the_traceback(call):
    code, _, err = call("profile", "cli_nets:broken", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_files_of_others_stay_and_ours_are_replaced(call, folder, pruned):
    assert call("prune", "recipe.toml")[0] == 0  # all three are ours
    for name in ("out.safetensors", "out.json", "out.html"):
        (folder / name).write_text("somebody's work")
    code, _, err = call("prune", "recipe.toml")
    assert code == 2
    assert len(err.splitlines()) == 3
    assert (folder / "out.html").read_text() == "somebody's work"
    assert call("prune", "recipe.toml", "--force")[0] == 0
    assert (folder / "out.html").read_text() != "somebody's work"


def test_report_makes_a_page_of_a_kept_receipt(call, folder, pruned):
    code, _, err = call("report", "out.json", "-o", "again.html")
    assert (code, "again.html" in err) == (0, True)
    assert (folder / "again.html").read_text().lower().startswith("<!doctype html>")
    assert not list(folder.glob(".*"))  # no half-written files are left behind


def test_a_damaged_model_file_is_one_line(call, folder, pruned):
    whole = (folder / "out.safetensors").read_bytes()
    for cut in (0, 4, 9, len(whole) // 2, len(whole) - 1):
        (folder / "cut.safetensors").write_bytes(whole[:cut])
        code, out, err = call("inspect", "cut.safetensors")
        assert (code, out, len(err.splitlines())) == (1, "", 1)


def test_help_and_version(call):
    code, out, _ = call("--help")
    assert code == 0
    for command in ("prune", "profile", "compare", "sensitivity", "inspect", "report", "demo", "Exit codes"):
        assert command in out
    assert call("--version") == (0, f"secateur {secateur.__version__}\n", "")
    for command in ("prune", "profile", "compare", "sensitivity", "inspect", "report", "demo"):
        code, out, _ = call(command, "--help")
        assert (code, "--json" in out, "--debug" in out) == (0, True, True)


# --- channels ----------------------------------------------------------------------------------------------------------------


def test_the_command_works_as_a_module_and_without_an_installation(tmp_path):
    """From a checkout on PYTHONPATH alone there is no metadata of a package."""
    checkout = tmp_path / "elsewhere"
    checkout.mkdir()
    (checkout / "secateur").symlink_to(Path(secateur.__file__).parent)
    hidden = (
        "import importlib.metadata as m, runpy, sys\n"
        "def version(name):\n"
        "    raise m.PackageNotFoundError(name)\n"
        "m.version, sys.argv = version, ['secateur', '--version']\n"
        "runpy.run_module('secateur', run_name='__main__')"
    )
    paths = os.pathsep.join([str(checkout), *filter(None, sys.path)])
    for command in ["-m", "secateur", "--version"], ["-c", hidden]:
        found = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert (found.returncode, found.stdout) == (0, f"secateur {secateur.__version__}\n"), found.stderr


def test_groups_are_shown_kept_as_a_page_and_given_as_json(call, folder):
    code, out, _ = call("groups", "cli_nets:make", "--input", "4x6")
    assert code == 0
    assert "1 group of 8 units; 3 channels may not leave." in out
    code, out, _ = call("groups", "cli_nets:make", "--input", "4x6", "--json", "-o", "groups.html")
    found = json.loads(out)
    assert found["groups"][0]["makers"] == ["0"]
    assert found["held"] == [{"reason": "reaches the model's output (`output`)", "layers": ["3"], "channels": [3]}]
    assert "<svg" in (folder / "groups.html").read_text()
    assert call("groups", "cli_nets:make", "--input", "4x6", "-o", "groups.html")[0] == 0  # ours: replaced
    (folder / "theirs.html").write_text("mine")
    assert call("groups", "cli_nets:make", "--input", "4x6", "-o", "theirs.html")[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("groups", "cli_nets:make"),
        ("groups", "cli_nets:make", "--input", "4x6", "--heads", "half"),
        ("sensitivity", "cli_nets:make", "--evaluate", "cli_nets:evaluate", "--granularity", "channel"),
    ],
)
def test_channels_without_an_example_are_a_mistake_in_one_line(call, arguments):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1


def test_sensitivity_of_channels(call):
    options = ("--evaluate", "cli_nets:evaluate", "--granularity", "channel", "--input", "4x6", "-s", "0.5")
    code, out, _ = call("sensitivity", "cli_nets:make", *options, "--json")
    assert code == 0
    assert list(json.loads(out)["sensitivity"]["curves"]) == ["0.weight"]


def test_a_recipe_narrows_and_inspect_says_so(call, folder):
    text = RECIPE.replace("sparsity = 0.5", 'sparsity = 0.5\ngranularity = "channel"\nround_to = 2').replace(
        "1x6", "4x6"
    )
    (folder / "recipe.toml").write_text(text)
    assert call("prune", "recipe.toml")[0] == 0
    code, out, _ = call("inspect", "out.safetensors")
    assert code == 0
    assert "narrowed: 7 tensors" in out
    assert "8x6 → 4x6" in out
    found = json.loads(call("inspect", "out.safetensors", "--json")[1])["file"]
    assert found["narrowed"] is True
    assert found["original"]["0.weight"] == [8, 6]
    assert "Which channels leave together" in (folder / "out.html").read_text()
