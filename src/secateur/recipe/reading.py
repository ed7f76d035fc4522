"""Read a recipe and hold all of it against what exists, before anything runs."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from secateur.errors import BadRecipe, UnknownName
from secateur.names import dotted
from secateur.recipe.inputs import is_dotted
from secateur.recipe.schema import ModelSection, OutputSection, PruneSection, Recipe, TaskSection, TrainSection
from secateur.recipe.wording import Problem, lines_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["load", "parse"]

_TABLES: dict[str, type[BaseModel]] = {
    "": Recipe,
    "model": ModelSection,
    "task": TaskSection,
    "prune": PruneSection,
    "train": TrainSection,
    "output": OutputSection,
}


def parse(text: str) -> Recipe:
    r"""Read a recipe from TOML text; nothing of the user's is imported or opened.

    Raises:
        BadRecipe: every mistake, one line each, with the key's path.

    >>> parse('[model]\npath = "nets:make"\n[prune]\nsparsity = 90\nmethd = "random"')
    Traceback (most recent call last):
    secateur.errors.BadRecipe: prune.sparsity: ... for 90 % write 0.9
    prune.methd: unknown key; did you mean 'method'? (there are: method, ...)
    """
    recipe, problems = _validate(_tables(text))
    if recipe is None or problems:
        raise BadRecipe(_joined(problems))
    return recipe


def load(path: str | Path) -> Recipe:
    """Read a recipe from a file, and check that everything it points at exists: modules, names, files, folders.

    Modules are imported (from the current folder too), models are not built and data are not read.

    Raises:
        BadRecipe: every mistake, one line each, with the key's path.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRecipe(f"cannot read the recipe {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    data = _tables(text)
    recipe, problems = _validate(data)
    wrong = {key for key, _ in problems}
    problems += [problem for problem in _missing_things(data) if problem[0] not in wrong]
    if recipe is None or problems:
        raise BadRecipe(_joined(problems))
    return recipe


def _tables(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadRecipe(f"the recipe is not TOML: {error}") from None


def _validate(data: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        return None, lines_of(error, _known_keys)


def _known_keys(table: tuple[str, ...]) -> Sequence[str]:
    model = _TABLES.get(".".join(table))
    return list(model.model_fields) if model else []


def _joined(problems: list[Problem]) -> str:
    return "\n".join(f"{key}: {text}" for key, text in problems)


def _missing_things(data: dict[str, Any]) -> Iterator[Problem]:
    for table, keys in _DOTTED_KEYS.items():
        for key, value in _texts(data, table, keys):
            if is_dotted(value):
                try:
                    dotted(value)
                except UnknownName as error:
                    yield key, str(error)
                except Exception as error:  # noqa: BLE001  the user's module failed while it was imported
                    yield key, f"{value!r}: importing it failed with {type(error).__name__}: {error}"
    for key, value in _texts(data, "model", ("weights",)):
        if not Path(value).is_file():
            yield key, f"there is no file {value!r}"
    for key, value in _texts(data, "output", ("model", "report", "html")):
        folder = Path(value).parent
        if not folder.is_dir():
            yield key, f"there is no folder {str(folder)!r}; create it first"


_DOTTED_KEYS = {
    "model": ("path", "example_inputs"),
    "task": ("batches", "loss", "evaluate"),
    "prune": ("method", "granularity", "scope"),
    "train": ("batches", "optimizer"),
}


def _texts(data: dict[str, Any], table: str, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield ``(path, text)`` of those keys that hold text or a list of texts; wrong types are reported elsewhere."""
    section = data.get(table)
    for key in keys:
        value = section.get(key) if isinstance(section, dict) else None
        for entry in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
            if isinstance(entry, str):
                yield f"{table}.{key}", entry
