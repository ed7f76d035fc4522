"""Where a value lies: a buffer, an offset, a stride for each dimension. Moving dimensions about moves no data.

Activations are *channel-major*: a channel (or feature) is one run of all positions (pixels or tokens), so that one weight meets many
neighbouring numbers. Planes have a pitch that leaves zeros between rows for the convolutions that read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

__all__ = ["Buffer", "View", "contiguous", "dense_like", "merged"]


@dataclass(eq=False)
class Buffer:
    """A piece of the arena, from the first step that writes it to the last that reads it; ``before`` and ``after`` may be read too."""

    size: int
    first: int = 1 << 60
    last: int = -1
    offset: int = -1
    before: int = 0
    after: int = 0

    def used(self, step: int) -> None:
        """Note a use."""
        self.first, self.last = min(self.first, step), max(self.last, step)


@dataclass(frozen=True)
class View:
    """A strided view.

    Args:
        space: 0 arena, 1 constant, 2 input or output, 3 cache, 4 what a thread keeps of one stripe.
        home: the buffer in the arena, or the number of the constant or slot.
        zeros: rows and columns of zeros that surround it for certain: above, below, left, right.
        moves: how far it moves from stripe to stripe: for a row, for an image.
    """

    space: int
    home: "Buffer | int"
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    zeros: tuple[int, int, int, int] = field(default=(0, 0, 0, 0))
    moves: tuple[int, int] = (0, 0)

    def with_(self, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> "View":
        """The same memory, seen otherwise."""
        return replace(
            self, shape=tuple(shape), strides=tuple(strides), offset=self.offset + offset, zeros=(0, 0, 0, 0)
        )

    def permuted(self, order: Sequence[int]) -> "View":
        """Dimensions in another order."""
        return self.with_([self.shape[d] for d in order], [self.strides[d] for d in order])

    def unsqueezed(self, at: int) -> "View":
        """With a dimension of size 1."""
        shape, strides = list(self.shape), list(self.strides)
        shape.insert(at, 1)
        strides.insert(at, 0)
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def squeezed(self, at: int) -> "View":
        """Without dimension ``at``, which has size 1."""
        return replace(
            self, shape=self.shape[:at] + self.shape[at + 1 :], strides=self.strides[:at] + self.strides[at + 1 :]
        )

    def expanded(self, shape: Sequence[int]) -> "View":
        """Broadcast to ``shape``, which may have more dimensions in front."""
        more = len(shape) - len(self.shape)
        strides = [0] * more + [
            0 if a == 1 and b != 1 else s for a, b, s in zip(self.shape, shape[more:], self.strides, strict=True)
        ]
        return self.with_(shape, strides)

    def reshaped(self, shape: Sequence[int]) -> "View | None":
        """As ``shape`` if no data has to move."""
        groups = merged(self.shape, self.strides)
        strides: list[int] = []
        left = [g for g in groups if g[0] != 1]
        for size in reversed(shape):
            if size == 1:
                strides.append(1)
                continue
            if not left or left[-1][0] % size:
                return None
            whole, step = left.pop()
            strides.append(step)
            if whole != size:
                left.append((whole // size, step * size))
        return self.with_(shape, strides[::-1]) if not left else None

    @property
    def span(self) -> int:
        """From the first float to the last, and one."""
        return sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + 1

    @property
    def size(self) -> int:
        """How many numbers."""
        return prod(self.shape)


def merged(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring dimensions that lie behind each other as one: (size, stride)."""
    groups: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == stride * size:
            groups[-1] = (groups[-1][0] * size, stride)
        else:
            groups.append((size, stride))
    return groups


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(strides[::-1])


def dense_like(view: View) -> tuple[int, ...]:
    """Strides without gaps, with the dimensions in the same order as in ``view``."""
    order = sorted(range(len(view.shape)), key=lambda d: (view.strides[d], view.shape[d] == 1, -d))
    strides, step = [0] * len(order), 1
    for d in order:
        strides[d] = step
        step *= view.shape[d]
    return tuple(strides)
