"""Exit codes, for scripts to rely on."""

from enum import IntEnum

__all__ = ["Exit"]


class Exit(IntEnum):
    """What the process returns."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOTHING_REMOVED = 3
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """The code in words."""
        return {
            Exit.OK: "done",
            Exit.ERROR: "an error: a damaged file, a model that does not fit, your own code",
            Exit.USAGE: "a mistake in the command or the recipe; nothing was run",
            Exit.NOTHING_REMOVED: "all went well, but nothing was removed",
            Exit.INTERRUPTED: "interrupted",
        }[self]
