"""Which steps are worth running in stripes: those whose planes are too large for the cache, unless the stripes cost more than that saves.

Times are rough ones, of one core of an x86 server: what counts is their order. `benchmarks/engine_stripes.py` measures them.
"""

from collections.abc import Iterator
from functools import partial

from secateur.runtime.chains import Chain, chain_of, stripable
from secateur.runtime.emitting import Emitter
from secateur.runtime.views import Buffer

__all__ = ["chosen"]

_LARGE = 2 << 20  # bytes: planes beyond this come from memory, not from a cache
_KEPT = 3 << 19  # bytes of all that a thread keeps of one stripe
_FAR = 0.15  # nanoseconds for a byte that comes from memory or goes there
_LAST = 0.005  # from the last cache or into it
_NEAR = 0.03  # from the cache behind the first one: weights, which every stripe reads again
_MULTIPLY = 0.08  # for a multiplication with a weight that is not zero
_STEP = 500.0  # for a step of one stripe
_LONGEST = 32  # steps of a chain
_HEIGHTS = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 20, 24, 28, 32)


def chosen(e: Emitter, stripes: bool | int, threads: int, width: int) -> list[tuple[Chain, int]]:
    """Chains that do not overlap, and the rows of a stripe of each; of a number of rows, as many steps as go together."""
    if stripes is True:
        return _worth(e, threads, width)
    return _everywhere(e, stripes) if stripes else []


def _everywhere(e: Emitter, rows: int) -> list[tuple[Chain, int]]:
    found: list[tuple[Chain, int]] = []
    k = 0
    while k < len(e.steps):
        fit = [(c, h) for c in _from(e, k, large=True) for h in range(1, min(rows, c.height) + 1) if c.fits(h)]
        found += fit[-1:]
        k = fit[-1][0].last + 1 if fit else k + 1
    return found


def _worth(e: Emitter, threads: int, width: int) -> list[tuple[Chain, int]]:
    """What together saves the most time."""
    count = len(e.steps)
    best: list[tuple[float, list[tuple[Chain, int]]]] = [(0.0, [])] * (count + 1)
    for k in range(count - 1, -1, -1):
        best[k] = best[k + 1]
        for chain in _from(e, k):
            gain, rows = max(
                map(partial(_gain, e, chain, threads=threads, width=width), _heights(chain)), default=(0.0, 0)
            )
            rest = best[chain.last + 1]
            if gain > 0 and gain + rest[0] > best[k][0]:
                best[k] = gain + rest[0], [(chain, rows), *rest[1]]
    return best[0][1]


def _from(e: Emitter, first: int, *, large: bool = False) -> Iterator[Chain]:
    for last in range(first, min(first + _LONGEST, len(e.steps))):
        if not stripable(e, last):
            return
        large = large or any(isinstance(v.home, Buffer) and 4 * v.home.size > _LARGE for v in e.steps[last][1])
        chain = chain_of(e, first, last) if large and last > first else None
        if chain is not None:
            yield chain


def _heights(chain: Chain) -> list[int]:
    return [
        h
        for h in sorted({*_HEIGHTS, chain.height})
        if h <= chain.height and chain.fits(h) and _bytes(chain, h) <= _KEPT
    ]


def _bytes(chain: Chain, rows: int) -> int:
    windows = (chain.windows[b] for b in chain.inner)
    return sum(4 * w.plane.shape[1] * w.rows(rows) * w.plane.strides[2] for w in windows)


def _gain(e: Emitter, chain: Chain, rows: int, *, threads: int, width: int) -> tuple[float, int]:
    """Nanoseconds that stripes of so many rows save."""
    stripes = (-(-chain.height // rows) + (chain.height % rows > 0)) * chain.images  # what is left over begins anew
    shared = sum(
        4 * w.plane.shape[1] * (w.high - w.low) * w.plane.strides[2] for w in (chain.windows[b] for b in chain.inner)
    )
    steps = range(chain.first, chain.last + 1)
    nonzeros = [e.labels[k].density * _weights(e, k) for k in steps]
    cost = stripes * (shared * _FAR + len(steps) * _STEP) + (stripes - 1) * 8 * sum(nonzeros) * _NEAR
    if threads > 1:
        if not chain.shared_out(rows, width):
            return -1.0, rows
        work = sum(e.labels[k].macs * e.labels[k].density for k in steps) * _MULTIPLY
        cost += work * (-(-stripes // threads) * threads / stripes - 1)
    return _saved(e, chain) - cost, rows


def _saved(e: Emitter, chain: Chain) -> float:
    """What is not read from memory or written there: planes between the steps, and all but the first look at what comes in."""
    uses: dict[Buffer, int] = {}
    for k in range(chain.first, chain.last + 1):
        if e.steps[k][0] != "border":
            for view in e.steps[k][1]:
                if isinstance(view.home, Buffer):
                    uses[view.home] = uses.get(view.home, 0) + 1
    price = {b: _FAR if 4 * b.size > _LARGE else _LAST for b in uses}
    return sum(4 * b.size * price[b] * (n if b in chain.inner else n - 1) for b, n in uses.items())


def _weights(e: Emitter, k: int) -> int:
    shape = e.labels[k].shape
    return shape[0] * shape[1] if e.steps[k][0] == "product" and len(shape) == 2 else 0
