"""Text written beside its place first and renamed then, so that nobody ever sees half a file."""

import os
import tempfile
from pathlib import Path

__all__ = ["write_text"]


def write_text(path: str | Path, text: str) -> Path:
    """Put ``text`` at ``path`` in one step; permissions of a file that is replaced stay."""
    goal = Path(path)
    handle, name = tempfile.mkstemp(dir=goal.parent, prefix=f".{goal.name}.")
    beside = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        beside.chmod(goal.stat().st_mode & 0o777 if goal.exists() else 0o644)
        beside.replace(goal)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return goal
