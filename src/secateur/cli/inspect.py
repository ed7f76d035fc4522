"""``secateur inspect FILE``: what a model file holds, without the model's class."""

__all__ = ["command"]
