"""Stripes: neighbouring steps run over a few rows of planes at a time, so that what passes between them stays in the cache.

A row of a convolution's output needs a few rows of its input, so a chain of steps can be done from top to bottom, stripe after stripe.
What only the chain itself reads is kept for one stripe alone, and of that the rows which the next stripe reads too; what comes in and what
goes out lies in the arena as ever, and moves with the stripes.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from secateur.runtime.chains import Chain, Window, home_of
from secateur.runtime.emitting import Emitter, Label, apart
from secateur.runtime.views import Buffer, View

__all__ = ["striped"]

Step = tuple[str, list[View], list[int], list[Any], list[int]]
_LANE = 16


def striped(e: Emitter, chains: list[tuple[Chain, int]]) -> int:
    """Put stripes of so many rows in the place of each chain's steps. Returns the floats that a thread keeps of one stripe."""
    begins = {chain.first: (chain, rows) for chain, rows in chains}
    steps: list[Step] = []
    labels: list[Label] = []
    local, k = 0, 0
    while k < len(e.steps):
        if k not in begins:
            steps.append(e.steps[k])
            labels.append(e.labels[k])
            k += 1
            continue
        chain, rows = begins[k]
        known: dict[int, int] = {}
        for top, height, stripe in _cut(chain.height, rows):
            homes = _laid(chain, stripe)
            local = max(local, sum(view.home.size for view in homes.values() if isinstance(view.home, Buffer)))
            for step, of in _group(e, chain, homes, stripe=stripe, count=height // stripe, top=top):
                labels.append(Label("", "stripes") if of < 0 else e.labels[of])
                if of in known:
                    labels[-1] = replace(labels[-1], part=known[of])
                known.setdefault(of, len(steps))
                steps.append(step)
        k = chain.last + 1
    e.steps, e.labels = steps, dict(enumerate(labels))
    _used(steps)
    return local


def _group(
    e: Emitter, chain: Chain, homes: dict[Buffer, View], *, stripe: int, count: int, top: int
) -> Iterator[tuple[Step, int]]:
    """The steps of a thread's first stripe, and those of the next ones, which keep the rows that two stripes share.

    With each the step that it is part of; -1: none.
    """
    places = range(chain.first, chain.last + 1)
    shared = [b for b in chain.inner if chain.windows[b].high > chain.windows[b].low] if count > 1 else []
    follow = len(shared) + len(places) if shared else 0
    yield ("stripes", [], [len(places), follow, chain.images, count, stripe, *chain.written(stripe)], [], []), -1
    for k in places:
        yield _moved(e, chain, homes, k, stripe, top), k
    if shared:
        for buffer in shared:
            yield _kept(chain.windows[buffer], homes[buffer], stripe), -1
        for k in places:
            yield _moved(e, chain, homes, k, stripe, top, follow=True), k


def _kept(window: Window, home: View, stripe: int) -> Step:
    """Move the last rows of a stripe to where the next one expects its first."""
    pitch, step = home.strides[2], home.strides[1]
    run = (window.high - window.low) * pitch
    to = replace(home, shape=(home.shape[1], run), strides=(step, 1))
    return "copy", [replace(to, offset=to.offset + window.ratio * stripe * pitch), to], [], [], []


def _cut(height: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Where stripes begin, how many rows they have together, and each: as many as fit, and one lower for the rest."""
    rest = height % rows
    if height >= rows:
        yield 0, height - rest, rows
    if rest:
        yield height - rest, rest, rest


def _laid(chain: Chain, stripe: int) -> dict[Buffer, View]:
    """Where a thread keeps each inner buffer's rows: views of the first row that is there."""
    homes = {}
    at = 0
    for buffer, (left, right) in chain.inner.items():
        window = chain.windows[buffer]
        _, channels, _, _ = window.plane.shape
        pitch = window.plane.strides[2]
        lead = (left + _LANE - 1) // _LANE * _LANE
        step = apart(lead + window.rows(stripe) * pitch + right)
        size = lead + step * channels + 2 * _LANE
        kept = Buffer(size, offset=at)
        homes[buffer] = View(4, kept, lead, (1, channels, window.rows(stripe), 1), (0, step, pitch, 1))
        at += size
    return homes


def _moved(
    e: Emitter, chain: Chain, homes: dict[Buffer, View], k: int, stripe: int, top: int, *, follow: bool = False
) -> Step:
    """Step ``k`` for one stripe; the first begins at row ``top`` of the output. ``follow``: only the rows that are new in it."""
    kind, views, ints, numbers, arrays = e.steps[k]
    rows = e.rows[k]
    assert rows is not None
    out = chain.windows[home_of(rows.planes[rows.out])]
    start = max(out.high, out.low) if follow else out.low  # rows that a pool steps over are not made
    count = out.ratio * stripe + out.high - start
    made = []
    for place, view in enumerate(views):
        stride = rows.reads.get(place, (1, 0, 0))[0]
        high = count * stride if kind == "phases" and place == 0 else count
        if kind in ("depthwise", "pool") and place == 0:
            high = (count - 1) * stride + 1
        if place not in rows.planes:
            made.append(_cropped(view, rows.planes[rows.out], high))
            continue
        plane = rows.planes[place]
        made.append(_placed(chain, homes, _cropped(view, rows.planes[rows.out], high), plane, stride * start, top))
    if kind == "border":
        left, right = chain.inner[home_of(rows.planes[0])]
        ints = [left, right, count, start + out.ratio * top, out.ratio, out.plane.shape[2]]
    if kind == "pool":
        ratio = chain.windows[home_of(rows.planes[0])].ratio
        ints = [*ints, ints[2] * start + ratio * top, ratio, rows.planes[0].shape[2]]
    return kind, made, ints, numbers, arrays


def _cropped(view: View, out: View, rows: int) -> View:
    """As many rows of one image."""
    if len(view.shape) == 4:
        return replace(view, shape=(1, view.shape[1], rows, view.shape[3]))
    width = (rows - 1) * out.strides[2] + out.shape[3]
    return replace(view, shape=(view.shape[0], width))


def _placed(chain: Chain, homes: dict[Buffer, View], view: View, plane: View, row: int, top: int) -> View:
    """A view that begins at ``row`` of its plane, counted from the stripe's first."""
    buffer = home_of(plane)
    window = chain.windows[buffer]
    pitch = plane.strides[2]
    if buffer not in homes:
        start = view.offset + (row + window.ratio * top) * pitch
        moves = window.ratio * pitch, plane.strides[0] if chain.images > 1 else 0
        low = view.offset + (window.low + window.ratio * top) * pitch
        buffer.before = max(buffer.before, (pitch - low + _LANE) // _LANE * _LANE)
        beyond = (
            window.ratio * (chain.height + top) + window.high - plane.shape[2]
        )  # zeros around can make more rows than there are
        buffer.after = max(buffer.after, (max(window.high + window.ratio, beyond) * pitch + _LANE) // _LANE * _LANE)
        return replace(view, offset=start, moves=moves)
    home = homes[buffer]
    strides = list(view.strides)
    strides[-3 if len(strides) == 4 else 0] = home.strides[1]
    if len(strides) == 4:
        strides[0] = 0
    return replace(
        view,
        space=4,
        home=home.home,
        offset=home.offset + (row - window.low) * pitch,
        strides=tuple(strides),
        zeros=(0, 0, 0, 0),
    )


def _used(steps: list[Step]) -> None:
    """How long each buffer is needed: all of a chain's as long as the chain."""
    for _, views, *_ in steps:
        for view in views:
            if isinstance(view.home, Buffer):
                view.home.first, view.home.last = 1 << 60, -1
    end = -1
    start = 0
    for k, (kind, views, ints, *_) in enumerate(steps):
        if kind == "stripes":
            start, end = k, k + ints[0] + ints[1]
        for view in views:
            if isinstance(view.home, Buffer):
                for step in (start, end) if k <= end else (k,):
                    view.home.used(step)
