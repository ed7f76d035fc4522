"""Chains: neighbouring steps that can be done a few rows of planes at a time, and which rows each of them needs for that."""

from dataclasses import dataclass, replace
from functools import partial

from secateur.runtime.emitting import Emitter, Rows
from secateur.runtime.views import Buffer, View

__all__ = ["Chain", "Window", "chain_of", "home_of", "stripable"]


@dataclass(frozen=True)
class Window:
    """Rows of one buffer that a stripe of S rows needs: ``ratio * S + high - low`` of them, from ``ratio * row + low``."""

    ratio: int
    low: int
    high: int
    plane: View

    def wider(self, low: int, high: int) -> "Window":
        """With more rows around."""
        return replace(self, low=min(self.low, low), high=max(self.high, high))

    def rows(self, stripe: int) -> int:
        """How many."""
        return self.ratio * stripe + self.high - self.low


@dataclass(frozen=True)
class Chain:
    """Steps ``first`` to ``last`` and the rows that they need of every buffer.

    Args:
        out: the last one's buffer, which lies in the arena as a whole, as do the inputs.
        inner: the buffers that only the chain uses.
    """

    first: int
    last: int
    windows: dict[Buffer, Window]
    inner: dict[Buffer, tuple[int, int]]  # zeros left and right
    out: Buffer

    @property
    def height(self) -> int:
        """Rows of the output."""
        return self.windows[self.out].plane.shape[2]

    @property
    def images(self) -> int:
        """The batch."""
        return self.windows[self.out].plane.shape[0]

    def fits(self, stripe: int) -> bool:
        """Whether no stripe needs more rows than there are, nor writes beyond its image when the next one is there already."""
        if self.images > 1 and self.height % stripe:
            return False
        return all(w.rows(stripe) <= w.plane.shape[2] for b, w in self.windows.items() if b not in self.inner)

    def written(self, stripe: int) -> tuple[int, int]:
        """Floats of a channel that one stripe writes, and how much further on the next one does."""
        plane = self.windows[self.out].plane
        return (stripe - 1) * plane.strides[2] + plane.shape[3], stripe * plane.strides[2]

    def shared_out(self, stripe: int, width: int) -> bool:
        """Whether threads can share the stripes: kernels write whole registers, and must not write into another thread's rows."""
        floats, apart = self.written(stripe)
        return -(-floats // width) * width <= apart


def chain_of(e: Emitter, first: int, last: int) -> Chain | None:
    """The steps as a chain, if they are one: each reads rows near those that it writes, and nobody else reads what is in between."""
    end = e.rows[last]
    if end is None or e.steps[last][0] == "border" or not all(map(partial(stripable, e), range(first, last + 1))):
        return None
    out = home_of(end.planes[end.out])
    windows = {out: Window(1, 0, 0, end.planes[end.out])}
    written: dict[Buffer, tuple[int, int]] = {}
    for k in range(last, first - 1, -1):
        one = e.rows[k]
        assert one is not None
        target = home_of(one.planes[one.out])
        if target not in windows or not _alike(windows[target].plane, one.planes[one.out]):
            return None
        left = right = 0
        if e.steps[k][0] == "border":
            if target is out:
                return None
            left, right = (n % one.planes[0].strides[2] for n in e.steps[k][2][:2])
        elif not _widened(windows, windows[target], one):
            return None
        before = written.get(target, (0, 0))
        written[target] = max(before[0], left), max(before[1], right)
    if (windows[out].low, windows[out].high) != (0, 0) or out.first < first:
        return None
    del written[out]
    if any(b.first < first or b.last > last for b in written):
        return None
    images = {w.plane.shape[0] for w in windows.values()}
    return Chain(first, last, windows, written, out) if len(images) == 1 else None


def stripable(e: Emitter, k: int) -> bool:
    """Whether a step's tensors are planes, or planes seen as channels of one run each."""
    rows = e.rows[k]
    if rows is None:
        return False
    for place, plane in rows.planes.items():
        view = e.steps[k][1][place]
        flat = len(view.shape) == 2 and view.shape[0] == plane.shape[1] and view.strides[0] == plane.strides[1]
        if not flat and len(view.shape) != 4:
            return False
    return isinstance(rows.planes[rows.out].home, Buffer)


def home_of(view: View) -> Buffer:
    """The buffer that planes lie in."""
    assert isinstance(view.home, Buffer)
    return view.home


def _alike(a: View, b: View) -> bool:
    return a.home is b.home and a.offset == b.offset and a.shape == b.shape and a.strides[1:] == b.strides[1:]


def _widened(windows: dict[Buffer, Window], out: Window, one: Rows) -> bool:
    for place, (stride, first, last) in one.reads.items():
        plane = one.planes[place]
        if not isinstance(plane.home, Buffer) or plane.strides[3] != 1 or plane.shape[2] < 2:
            return False
        if (
            not first <= 0 <= last
        ):  # more padding than the kernel reaches: a stripe would read rows that are none of its own
            return False
        ratio, low, high = out.ratio * stride, out.low * stride + first, out.high * stride + last - stride + 1
        known = windows.get(plane.home, Window(ratio, low, high, plane))
        if known.ratio != ratio or not _alike(known.plane, plane):
            return False
        windows[plane.home] = known.wider(low, high)
    return True
