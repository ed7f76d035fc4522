"""Output files: never over somebody else's work."""

import json
from collections.abc import Iterable
from pathlib import Path

from secateur.errors import BadRecipe
from secateur.storage import is_ours as is_packed

__all__ = ["refuse_foreign", "written_by_us"]

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
