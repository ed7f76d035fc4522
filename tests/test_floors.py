"""Imports go down, or sideways on floors 0 to 3; files on one shelf never import each other; the front door opens quickly."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import secateur

ROOT = Path(secateur.__file__).parent
FLOORS = {
    0: "errors task scores masks facts cuts units report structure pricing budgets replacing",
    1: "protocols",
    2: "granularities schedules allocations formats counting planning columns names filling solvers quantising quadratic budget_of_errors checkpoints pictures quotas packing ranking",
    3: "layers targets gradients notes examples coupling cutting narrow_attention gates activations graphs probing limits projections spending controls cyclegan evolution fidelity mapped renewing layerwise curvatures energy narrowing training alternating profiling merging",
    4: "criteria costs error_curves",
    5: "methods sensitivity",
    6: "storage export runtime reporting integrations recipe testing amounts choices pruning on_disk demo",
    7: "cli",
    8: "__main__",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
SHELVES = {"methods", "criteria", "allocations", "granularities", "schedules", "formats", "costs", "solvers"}
SHARED = {
    "granularities.pattern",
    "schedules.polynomial",
    "solvers.admm_support",
    "solvers.support",
}  # what other files of their shelf are made of
LAZY = {
    ("report", "reporting"),
    ("sensitivity", "reporting"),
}  # a value that is asked to show itself, inside a function
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def imports_of(path):
    """Modules of secateur that a file imports, anywhere in it, without the leading ``secateur.``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("secateur").lstrip(".") for a in node.names if a.name.split(".")[0] == "secateur"
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "secateur":
            module = node.module.removeprefix("secateur").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else module


def floor(name):
    top = name.split(".")[0]
    assert top in FLOOR_OF, f"{top!r} has no floor: put it into FLOORS here, and a package into CONTRIBUTING.md's table"
    return FLOOR_OF[top]


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path)], ids=name_of)
def test_imports_go_down(path):
    here = name_of(path)
    for there in set(imports_of(path)):
        if (here, there.split(".")[0]) in LAZY or there.split(".")[0] == here.split(".")[0]:
            continue
        if not there and floor(here) >= 6:  # doors may use the front door
            continue
        assert there, f"{here} imports the package itself"
        sideways = floor(here) == floor(there) and floor(here) <= 3
        doors = floor(here) == floor(there) == 6  # doors may open on doors
        assert floor(there) < floor(here) or sideways or doors, (
            f"{here} (floor {floor(here)}) imports {there} (floor {floor(there)})"
        )


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p).split(".")[0] in SHELVES], ids=name_of)
def test_files_on_a_shelf_do_not_know_each_other(path):
    here = name_of(path)
    shelf, is_file = here.split(".")[0], "." in here
    neighbours = {there for there in imports_of(path) if there.startswith(f"{shelf}.")} - SHARED
    assert not is_file or not neighbours


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_and_say_what_they_are_for(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 250
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


@pytest.mark.parametrize("path", sorted((ROOT.parent / "secateur_engine").glob("*.py")), ids=lambda path: path.stem)
def test_serving_stands_alone(path):
    """`secateur_engine` is what serving needs: numpy, and nothing of torch or of the library; torch only for who brings tensors."""
    text = path.read_text()
    outside = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.parse(text).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert outside - set(sys.stdlib_module_names) <= {"numpy", "secateur_engine"}
    assert len(text.splitlines()) <= 250


def test_the_front_door_loads_no_heavy_package():
    """``import secateur`` beside ``import torch``: nothing that only a door needs."""
    program = (
        "import torch, sys, time; start = time.perf_counter(); import secateur; took = time.perf_counter() - start;"
        "heavy = {'matplotlib', 'typer', 'jinja2', 'sklearn', 'rich', 'tomli_w', 'click', 'PIL', 'onnx', 'onnxscript', 'onnxruntime'};"
        "print(sorted(heavy & set(sys.modules)), took)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded, took = found.stdout.rsplit(" ", 1)
    assert loaded == "[]"
    assert float(took) < 5  # about 0.3 s on an idle machine
