"""What a run of a model takes, by the best counter that this machine lets us read: energy where there is one, else time, and it says which.

CPU:  /sys/class/powercap/intel-rapl:*/energy_uj      (RAPL, also on AMD; microjoules, wraps around)
GPU:  nvmlDeviceGetTotalEnergyConsumption              (NVML, with the package nvidia-ml-py; millijoules)
else: processor time of one thread                     (milliseconds; no energy at all)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, final

import torch

__all__ = ["Meter", "find_meter"]

POWERCAP = Path("/sys/class/powercap")


@final
@dataclass(frozen=True, kw_only=True)
class Meter:
    """A counter that only goes up.

    Args:
        unit: of what `reading` returns.
        says: what is measured and how, in words, for tables and receipts.
        reading: the counter now.
        wraps_at: where it starts again from zero; 0: never.
    """

    unit: str
    says: str
    reading: Callable[[], float]
    wraps_at: float = 0.0

    def per_call(self, call: Callable[[], Any], *, seconds: float = 0.2, rounds: int = 5) -> float:
        """What one call takes: the least mean of some rounds, since everything else that runs only adds to it."""
        repeats = _repeats(call, seconds / rounds)
        return min(self._mean(call, repeats) for _ in range(rounds))

    def ratio(
        self, call: Callable[[], Any], reference: Callable[[], Any], *, seconds: float = 0.2, rounds: int = 9
    ) -> float:
        """What a call takes of what ``reference`` does: the median over rounds that have both in turn, so that a busy machine favours neither."""
        times = [_repeats(one, seconds / rounds / 2) for one in (call, reference)]
        return median(self._mean(call, times[0]) / max(self._mean(reference, times[1]), 1e-12) for _ in range(rounds))

    def _mean(self, call: Callable[[], Any], repeats: int) -> float:
        before = self.reading()
        for _ in range(repeats):
            call()
        spent = self.reading() - before
        return (spent if spent >= 0 else spent + self.wraps_at) / repeats


def _repeats(call: Callable[[], Any], seconds: float) -> int:
    """How many calls fill some time; two calls are spent on finding out."""
    call()
    start = time.perf_counter()
    call()
    return max(1, int(seconds / max(time.perf_counter() - start, 1e-6)))


def find_meter(device: torch.device | str = "cpu", *, powercap: Path = POWERCAP) -> Meter:
    """The best counter for ``device`` that can be read.

    >>> find_meter(powercap=Path("/nowhere")).unit
    'ms'
    """
    kind = torch.device(device).type
    found = _nvml(torch.device(device)) if kind == "cuda" else _rapl(powercap)
    return found or _clock(kind)


def _rapl(powercap: Path) -> Meter | None:
    packages = sorted(powercap.glob("*-rapl:?")) + sorted(powercap.glob("*-rapl:??"))
    readable = [package for package in packages if _counts(package)]
    if not readable:
        return None

    def total() -> float:
        return float(sum(int((package / "energy_uj").read_text()) for package in readable))

    try:
        wraps = sum(float((package / "max_energy_range_uj").read_text()) for package in readable)
    except (OSError, ValueError):
        wraps = 0.0
    says = f"energy of {len(readable)} processor package(s) by RAPL, with everything else that ran on them"
    return Meter(unit="µJ", says=says, reading=total, wraps_at=wraps)


def _counts(package: Path) -> bool:
    try:
        return int((package / "energy_uj").read_text()) >= 0
    except (OSError, ValueError):  # most systems let only root read it
        return False


def _nvml(device: torch.device) -> Meter | None:
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # noqa: BLE001  no package, no driver, or a card without the counter
        return None

    def total() -> float:
        torch.cuda.synchronize(device)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1e3

    return Meter(unit="µJ", says=f"energy of GPU {device.index or 0} by NVML, the whole board", reading=total)


def _clock(kind: str) -> Meter:
    if kind == "cuda":

        def now() -> float:
            torch.cuda.synchronize()
            return time.perf_counter() * 1e3

        return Meter(
            unit="ms", says="latency, NOT energy: NVML has no energy counter here (package nvidia-ml-py?)", reading=now
        )
    return Meter(
        unit="ms",
        says="processor time of the calling process, NOT energy: no counter below /sys/class/powercap can be read here",
        reading=lambda: time.process_time() * 1e3,
    )
