"""Results as JSON files with machine, versions and commit, and the options that every script shares."""

import argparse
import gzip
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from benchmarks.data import DATA, ROOT

RESULTS = ROOT / "benchmarks" / "results"


def options(what: str | None) -> argparse.ArgumentParser:
    """A parser with what every script takes."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; nothing is recorded")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file (default: %(default)s)")
    return parser


def machine() -> dict[str, Any]:
    """Where and with what a number was measured."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "secateur_commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """The commit the library stands at, with ``+`` where the library's own files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "src") else "")


def record(name: str, rows: Iterable[Mapping[str, Any]], *, out: Path, **about: Any) -> Path:
    """Write ``out/name.json``; a crash in the middle leaves the old file."""
    out.mkdir(parents=True, exist_ok=True)
    path, fresh = out / f"{name}.json", out / f".{name}.json.new"
    fresh.write_text(json.dumps({"machine": machine(), **about, "rows": list(rows)}, indent=1) + "\n")
    fresh.replace(path)
    return path


def summarise(rows: Iterable[Mapping[str, Any]], key: str, *groups: str) -> list[dict[str, Any]]:
    """Mean and sample standard deviation of ``key`` over rows that agree in ``groups``."""
    table: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        table.setdefault(tuple(row.get(group) for group in groups), []).append(row[key])
    return [
        dict(zip(groups, where, strict=True))
        | {
            "mean": statistics.fmean(values),
            "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
            "runs": len(values),
        }
        for where, values in table.items()
    ]


def plain_bytes(model: nn.Module) -> int:
    """The size of the plain safetensors file."""
    return len(safetensors.torch.save(model.state_dict()))


def gzip_bytes(model: nn.Module) -> int:
    """The size of the plain safetensors file after gzip."""
    return len(gzip.compress(safetensors.torch.save(model.state_dict()), 9, mtime=0))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of ``work`` and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
