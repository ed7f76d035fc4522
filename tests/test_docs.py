"""Every piece of Python in the README and in docs/ runs, every recipe in them is valid, and every link leads somewhere."""

import re
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from secateur.recipe import Recipe, parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCKS = Sybil(parsers=[PythonCodeBlockParser(doctest_optionflags=NORMALIZE_WHITESPACE | ELLIPSIS), SkipParser()])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Pages write files and modules; they do it in a folder of their own, with a fixed seed, one page at a time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def fenced(language, page):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_on_the_page_runs(page):
    hidden = re.findall(r"^<!-+ *invisible-code-block: python", page.read_text(), flags=re.MULTILINE)
    prompts = [len(re.findall("^>>> ", block, flags=re.MULTILINE)) for block in fenced("python", page)]
    ran = 0
    for example in BLOCKS.parse(page).examples():
        example.evaluate()
        ran += 1
    assert ran == len(hidden) + sum(many or 1 for many in prompts)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_recipes_on_the_page_are_valid(page):
    recipes = [parse(recipe) for recipe in fenced("toml", page)]
    assert len(recipes) == page.read_text().count("```toml")
    assert all(isinstance(recipe, Recipe) for recipe in recipes)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose)):
        if not target.startswith(("http://", "https://", "mailto:", "#")):
            path = (page.parent / target.partition("#")[0]).resolve()
            assert path.exists(), f"{page.name} links to {target}"


def test_every_page_is_reachable_from_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, f"docs/index.md does not link {page.name}"
