"""Example inputs from text: ``"1x3x224x224"``, ``"1x128:int64"``, or a dotted path to Python that makes them."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.errors import BadRecipe
from secateur.names import dotted

__all__ = ["check_input", "example_inputs_of", "is_dotted"]

_SHAPE = re.compile(r"(?P<sizes>\d+(x\d+)*)(:(?P<dtype>\w+))?")
_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_dotted(text: str) -> bool:
    """Whether ``text`` looks like ``package.module:thing``.

    >>> is_dotted("mypkg.nets:make"), is_dotted("block:4x1"), is_dotted("2:4")
    (True, False, False)
    """
    return _DOTTED.fullmatch(text) is not None


def check_input(text: str) -> str:
    """Return ``text`` if it describes an input.

    Raises:
        BadRecipe: it is neither a shape nor a dotted path, a size is zero, or torch has no such dtype.
    """
    found = _SHAPE.fullmatch(text)
    if found is None:
        if is_dotted(text):
            return text
        raise BadRecipe(
            f"{text!r} is no input: write a shape such as 1x3x224x224 or 1x128:int64, or package.module:name"
        )
    if 0 in _sizes(found):
        raise BadRecipe(f"{text!r} has a size of zero")
    name = found["dtype"]
    if name and not isinstance(getattr(torch, name, None), torch.dtype):
        raise BadRecipe(
            f"{text!r}: torch has no dtype {name!r}; there are float32, float16, bfloat16, int64, int32, bool, ..."
        )
    return text


def example_inputs_of(texts: Sequence[str]) -> Any:
    """Make the inputs: one tensor a shape, in order, or whatever a single dotted path gives. ``None`` for no texts.

    Floats are drawn from a fixed seed; integers and bools are zeros, which every vocabulary and mask accepts.

    Raises:
        BadRecipe: see `check_input`.

    >>> [tuple(t.shape) for t in example_inputs_of(["1x3x8x8", "1x128:int64"])]
    [(1, 3, 8, 8), (1, 128)]
    """
    if not texts:
        return None
    if len(texts) == 1 and is_dotted(texts[0]):
        made = dotted(texts[0])
        return made() if callable(made) and not isinstance(made, Tensor) else made
    generator = torch.Generator().manual_seed(0)
    return tuple(_tensor(check_input(text), generator) for text in texts)


def _tensor(text: str, generator: torch.Generator) -> Any:
    found = _SHAPE.fullmatch(text)
    if found is None:
        made = dotted(text)
        return made() if callable(made) and not isinstance(made, Tensor) else made
    dtype: torch.dtype = getattr(torch, found["dtype"] or "float32")
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(_sizes(found), generator=generator).to(dtype)
    return torch.zeros(_sizes(found), dtype=dtype)


def _sizes(found: "re.Match[str]") -> list[int]:
    return [int(size) for size in found["sizes"].split("x")]
