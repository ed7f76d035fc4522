"""Steps: what the engine will do, over buffers whose places are decided in the end, when it is known how long each is needed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.graph import Value
from secateur.runtime.planes import Planes, plane_shape
from secateur.runtime.views import Buffer, View, contiguous, dense_like

__all__ = ["Constants", "Emitter", "Label", "Rows", "apart"]

_LANE = 16  # floats: the widest register; every channel ends on one


@dataclass
class Label:
    """What the report says about a step; ``part``: it is a further piece of that step's work."""

    path: str
    kind: str
    shape: tuple[int, ...] = ()
    density: float = 1.0
    form: str = ""
    macs: int = 0
    part: int | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of its inputs a step reads for row r of what it writes: ``stride * r + first`` to ``stride * r + last``.

    Args:
        planes: tensors of the step, by their place, as ``[N, C, H, W]``.
        out: the place of the one that is written.
        reads: the places of those that are read, with (stride, first, last). All others are the same for every row.
    """

    planes: dict[int, View]
    out: int
    reads: dict[int, tuple[int, int, int]]


@dataclass
class Constants:
    """The arrays of a model; equal ones are kept once."""

    arrays: list[NDArray[Any]] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)

    def number(self, array: NDArray[Any]) -> int:
        """The number of an array, added if it is new."""
        array = np.ascontiguousarray(array)
        digest = hashlib.blake2b(array.tobytes() + f"{array.dtype}{array.shape}".encode(), digest_size=16).digest()
        if digest not in self.known:
            self.known[digest] = len(self.arrays)
            self.arrays.append(array)
        return self.known[digest]


class Emitter:
    """Collects steps."""

    def __init__(
        self, constants: Constants, planes: Planes, *, values: str = "float32", form: str | None = None, cache: int = 0
    ) -> None:
        self.constants, self.planes, self.values, self.form, self.cache = constants, planes, values, form, cache
        self.steps: list[tuple[str, list[View], list[int], list[Any], list[int]]] = []
        self.labels: dict[int, Label] = {}
        self.rows: dict[int, Rows | None] = {}
        self.slots: list[tuple[int, ...]] = []
        self.outside: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.lookups: dict[int, int] = {}  # slot -> rows of the table that it is looked up in
        self.state, self.inputs = 0, 0
        self.path = ""

    def step(
        self,
        kind: str,
        tensors: Sequence[View],
        ints: Sequence[int] = (),
        numbers: Sequence[float] = (),
        arrays: Sequence[NDArray[Any]] = (),
        label: Label | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Add a step; ``rows`` where it can be done for some rows at a time."""
        here = len(self.steps)
        for view in tensors:
            if isinstance(view.home, Buffer):
                view.home.used(here)
        self.labels[here] = label or Label(self.path, kind)
        self.rows[here] = rows
        self.steps.append(
            (
                kind,
                list(tensors),
                [int(i) for i in ints],
                [_plain(n) for n in numbers],
                [self.constants.number(a) for a in arrays],
            )
        )

    def buffer(self, size: int) -> Buffer:
        """A piece of the arena of at least ``size`` floats."""
        return Buffer((size + _LANE - 1) // _LANE * _LANE + _LANE)

    def view(self, value: Value) -> View:
        """Where a value lies; constants lie in the file."""
        if value.view is None:
            assert value.tensor is not None, "a value is read before it is made"
            array = value.array
            value.view = View(1, self.constants.number(array.reshape(-1)), 0, value.shape, contiguous(value.shape))
        return value.view

    def slot(self, shape: tuple[int, ...]) -> View:
        """A new input or output."""
        self.slots.append(shape)
        return View(2, len(self.slots) - 1, 0, shape, contiguous(shape))

    def plain(self, shape: tuple[int, ...]) -> View:
        """A new row-major tensor."""
        size = int(np.prod(shape, dtype=np.int64))
        return View(0, self.buffer(size), 0, shape, contiguous(shape))

    def like(self, view: View, shape: tuple[int, ...] | None = None) -> View:
        """A new tensor laid out as ``view`` is: the same order of dimensions, and the same gaps if they are small."""
        if shape is not None and shape != view.shape:
            return self.plain(shape)
        tight = view.span <= 1.5 * view.size + 64 and 0 not in [
            s for n, s in zip(view.shape, view.strides, strict=True) if n > 1
        ]
        strides = view.strides if tight and min(view.strides, default=1) >= 0 else dense_like(view)
        fresh = View(0, 0, 0, view.shape, strides)
        return View(0, self.buffer(fresh.span), 0, view.shape, strides)

    def tokens(self, lead: tuple[int, ...], lead_strides: tuple[int, ...], features: int) -> View:
        """A new feature-major tensor [*lead, features] whose positions lie as ``lead_strides`` says."""
        span = sum((n - 1) * s for n, s in zip(lead, lead_strides, strict=True)) + 1
        stride = apart(span)
        return View(0, self.buffer(stride * features), 0, (*lead, features), (*lead_strides, stride))

    def plane(self, value: Value, channels: int | None = None) -> View:
        """A new place for planes: the pitch of the value's group, and room for the zeros that its readers need."""
        n, c, height, width = plane_shape(value.shape)
        c = channels or c
        pitch, rows = self.planes.pitch(value)
        top, bottom, left, right = value.need
        if n == 1:
            rows = height
        lead = (top * pitch + left + _LANE - 1) // _LANE * _LANE
        tail = bottom * pitch + right
        stride = apart(lead + n * rows * pitch + tail)
        shape, strides = (n, c, height, width), (rows * pitch, stride, pitch, 1)
        view = View(0, self.buffer(stride * c + lead), lead, shape, strides)
        return view if len(value.shape) == 4 else view.squeezed(2)

    def border(self, value: Value, view: View) -> View:
        """Write the zeros around planes, if a reader needs them; the view says afterwards that they are there."""
        if value.need == (0, 0, 0, 0):
            return view
        top, bottom, left, right = value.need
        four = view if len(view.shape) == 4 else view.unsqueezed(2)
        pitch = self.planes.pitch(value)[0]
        rows = four.strides[0] // pitch if four.shape[0] > 1 else four.shape[2]
        four = four.with_(four.shape, (four.strides[0], four.strides[1], pitch, 1))
        self.step("border", [four], [top * pitch + left, bottom * pitch + right, rows], rows=Rows({0: four}, 0, {}))
        return View(view.space, view.home, view.offset, view.shape, view.strides, value.need)

    def copy(self, source: View, target: View, rows: Rows | None = None) -> View:
        """Copy element by element."""
        self.step("copy", [source, target], rows=rows)
        return target

    def made(self, value: Value, view: View) -> None:
        """Note where a value lies, with the zeros its readers need where there is room for them; else `as_planes` copies it."""
        value.view = self.border(value, view) if self.planes.knows(value) and self._has_room(value, view) else view

    def as_planes(self, value: Value) -> View:
        """The value as planes with its group's pitch and its zeros around; copied there if it lies elsewhere."""
        view = self.view(value)
        if not self._fits(value, view):
            view = self.border(value, self.copy(view, self.plane(value)))
            value.view = view
        return view if len(view.shape) == 4 else view.unsqueezed(2)

    def _fits(self, value: Value, view: View) -> bool:
        zeros = all(have >= need for have, need in zip(view.zeros, value.need, strict=True))
        return zeros and self._lies_as_planes(value, view)

    def _lies_as_planes(self, value: Value, view: View) -> bool:
        four = view if len(view.shape) == 4 else view.unsqueezed(2)
        pitch, rows = self.planes.pitch(value)
        n, _, height, width = four.shape
        span = (n - 1) * rows * pitch + (height - 1) * pitch + width
        return (
            view.space == 0
            and (height == 1 or four.strides[2] == pitch)
            and (width == 1 or four.strides[3] == 1)
            and (n == 1 or four.strides[0] == rows * pitch)
            and (four.shape[1] == 1 or four.strides[1] >= span)
        )

    def _has_room(self, value: Value, view: View) -> bool:
        """Whether zeros can be written around it, between its channels and within its buffer."""
        if not self._lies_as_planes(value, view) or not isinstance(view.home, Buffer):
            return False
        n, channels, height, _ = plane_shape(view.shape)
        pitch, rows = self.planes.pitch(value)
        top, bottom, left, right = value.need
        lead, span = top * pitch + left, n * (rows if n > 1 else height) * pitch + bottom * pitch + right
        apart = view.strides[1] if channels > 1 else lead + span
        return (
            view.offset >= lead
            and apart >= lead + span
            and view.offset + (channels - 1) * apart + span <= view.home.size
        )


def apart(span: int) -> int:
    """A distance between channels: whole registers, room for one more, and no multiple of 4 KB, which would collide in the cache."""
    stride = (span + 2 * _LANE - 1) // _LANE * _LANE
    return stride + _LANE if stride % 256 == 0 else stride


def _plain(number: float) -> Any:
    number = float(number)
    return number if np.isfinite(number) else str(number)
