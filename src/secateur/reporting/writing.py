"""Text that replaces a file whole; permissions of the file that was there stay."""

from pathlib import Path

from secateur.replacing import replacing

__all__ = ["write_text"]


def write_text(path: str | Path, text: str) -> Path:
    """Put ``text`` at ``path`` in one step."""
    goal = Path(path)
    with replacing(goal) as beside:
        if goal.exists():
            beside.chmod(goal.stat().st_mode & 0o777)
        beside.write_text(text, encoding="utf-8")
    return goal
