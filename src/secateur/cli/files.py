"""Output files: whole or not at all, and never over somebody else's work."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from secateur.errors import BadRecipe
from secateur.storage import is_ours as is_packed

__all__ = ["refuse_foreign", "write_text", "written_by_us"]

_PAGE_MARK = b'content="secateur'
_LOOK = 1 << 16


def refuse_foreign(paths: Iterable[Path | None], *, force: bool) -> None:
    """Refuse to replace files that Secateur did not write, and folders that do not exist.

    Raises:
        BadRecipe: a file is in the way; all of them are named.
    """
    lines = []
    for path in filter(None, paths):
        if not path.parent.is_dir():
            lines.append(f"{path}: there is no folder {str(path.parent)!r}; create it first")
        elif path.is_dir():
            lines.append(f"{path}: this is a folder; name a file in it")
        elif path.exists() and not force and not written_by_us(path):
            lines.append(
                f"{path} exists and was not written by Secateur; choose another name, or pass --force to replace it"
            )
    if lines:
        raise BadRecipe("\n".join(lines))


def written_by_us(path: Path) -> bool:
    """Whether Secateur wrote ``path``: one of its models, its JSON or its pages."""
    if path.suffix == ".safetensors":
        return is_packed(path)
    if path.suffix == ".json":
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            return False
        return isinstance(found, dict) and "secateur" in found
    with path.open("rb") as file:
        return _PAGE_MARK in file.read(_LOOK).lower()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` first and rename it then, so that no half file is ever seen."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
