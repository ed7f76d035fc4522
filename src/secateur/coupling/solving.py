"""New values for the attributes that are sizes, so that every size in the code comes out as what is left of its axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateur.coupling.traced import Count, Origin, counted, origins, spell, value_of

__all__ = ["SizeUse", "SizesDisagree", "solve"]


class SizesDisagree(ValueError):
    """One attribute gives the sizes of axes that would shrink differently."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(text)
        self.path = path


@dataclass(frozen=True)
class SizeUse:
    """The size of one axis was given by ``expression``; ``colours`` says what is along it, ``[size, colours]``."""

    expression: Any
    colours: Tensor


def solve(
    sizes: Sequence[SizeUse], before: Mapping[Origin, int], valued: set[Origin], gone: Tensor
) -> dict[Origin, int]:
    """The new values of attributes: each use must come out as what is left of the axis it measures.

    Args:
        sizes: which attribute gave which size.
        before: the values of all attributes.
        valued: attributes that are calculated with as well; they may not change.
        gone: which colours leave.

    Raises:
        SizesDisagree: no single value does.
    """
    uses = [(counted(use.expression, gone), Count(use.colours).left(gone), len(use.colours)) for use in sizes]
    found: dict[Origin, int] = {}
    for expression, now, _ in uses:
        if len(expression) == 2 and found.setdefault(expression, now) != now:
            raise SizesDisagree(expression[0], f"{expression[1]} would be {found[expression]} here and {now} there")
    for expression, now, _ in uses:
        if value_of(expression, found, before) != now:
            origin, value = _only_answer(expression, now, found, before)
            found[origin] = value
    changed = {origin: value for origin, value in found.items() if value != before[origin]}
    for path, attribute in changed.keys() & valued:
        raise SizesDisagree(path, f"{attribute} is a size, and its value is calculated with as well")
    return changed


def _only_answer(
    expression: Any, now: int, found: dict[Origin, int], before: Mapping[Origin, int]
) -> tuple[Origin, int]:
    answers = {
        origin: value
        for origin in origins(expression) - set(found)
        for value in range(1, before[origin])  # sizes only shrink
        if value_of(expression, found | {origin: value}, before) == now
    }
    if len(answers) != 1:
        path = min(origins(expression))[0]
        raise SizesDisagree(path, f"no single attribute makes a size of {now} out of {spell(expression)}")
    return answers.popitem()
