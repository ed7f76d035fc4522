"""What the engine raises on purpose."""

__all__ = ["BadFile", "BadInput", "EngineError"]


class EngineError(Exception):
    """The parent of all of them."""


class BadFile(EngineError, ValueError):
    """A file is damaged, truncated, hostile, or not a compiled model."""


class BadInput(EngineError, ValueError):
    """A model is called with something that it was not compiled for."""
