"""Measured latency: warm up, then take turns.

Candidates are timed alternately, one sample each, so that a machine that warms up, throttles or is shared slows both alike. The
median and the quartiles are kept: means are at the mercy of one hiccup. A sample of a very fast model is a block of calls, so
that the clock's own cost does not show. Freed memory is kept by the process, not given back and fetched anew at every call: whether
that happens depends on what ran before, and it can cost a network half of its time.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from secateur.report import Latency

__all__ = ["Call", "measure", "using_threads"]

Call = Callable[[], Any]

_BLOCK_SECONDS = 5e-4  # a sample lasts at least this long
_SAMPLES = 200  # enough for steady quartiles; a fast model is done long before its time is up
_FEWEST = 5
_KEPT = (32 << 20) - (
    1 << 16
)  # the largest block whose release makes glibc raise its limits (M_MMAP_THRESHOLD in mallopt(3))


def measure(calls: Sequence[Call], *, seconds: float = 1.0, device: str = "cpu") -> list[Latency]:
    """Time ``calls`` in turns.

    Args:
        calls: what to time; each runs at least six times, the first of them to warm up.
        seconds: about how long to measure each.
        device: where they run; anything but "cpu" is waited for.

    Returns:
        One `Latency` for each call, in their order.
    """
    torch.empty(_KEPT, dtype=torch.uint8)  # released at once
    wait = _nothing if device == "cpu" else torch.accelerator.synchronize
    block = max(_block_of(call, wait, seconds / 5) for call in calls)  # the same for all: they share the clock's cost
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds * len(calls)
    while len(samples[0]) < _SAMPLES and (len(samples[0]) < _FEWEST or time.perf_counter() < end):
        for call, found in zip(calls, samples, strict=True):
            found.append(_sample(call, block, wait))
    return [_summary(found, block, device) for found in samples]


@contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """Run with ``threads`` threads for a while, or with as many as there are."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def _block_of(call: Call, wait: Call, seconds: float) -> int:
    """How many calls make one sample; found while warming up for at most ``seconds``."""
    end, once = time.perf_counter() + seconds, float("inf")
    for _ in range(20):
        once = min(once, _sample(call, 1, wait))
        if time.perf_counter() > end:
            break
    return max(1, round(_BLOCK_SECONDS / max(once, 1e-9))) if once < _BLOCK_SECONDS else 1


def _sample(call: Call, block: int, wait: Call) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(block):
        call()
    wait()
    return (time.perf_counter() - start) / block


def _summary(samples: list[float], block: int, device: str) -> Latency:
    low, median, high = (1e3 * cut for cut in statistics.quantiles(samples, n=4, method="inclusive"))
    runs, threads = len(samples) * block, torch.get_num_threads()
    median, low, high = (float(f"{ms:.4g}") for ms in (median, low, high))  # a clock is not surer than that
    return Latency(median_ms=median, low_ms=low, high_ms=high, runs=runs, threads=threads, device=device)


def _nothing() -> None:
    return None
