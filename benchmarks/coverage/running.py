"""One process per architecture, with a limit of processor seconds and of memory; libraries are imported once and forked.

Limits count the processor's time on one thread, so that other work on the machine does not fail an architecture.
"""

import json
import multiprocessing
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PRELOAD = [
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "secateur",
    "benchmarks.coverage.check",
    "benchmarks.coverage.families",
]
MEMORY = 16 << 30
PATIENCE = 10


def run(family: str, name: str, *, seconds: float, peer: str = "") -> Row:
    """Check one architecture and load its file in a second process."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "peer").write_text(peer)
        row = _apart(_first if not peer else _peer, family, name, folder, seconds)
        if row["outcome"] == "passed" and not peer:
            again = _apart(_second, family, name, folder, seconds)
            row |= {"reloaded_difference": again.get("reloaded_difference")}
            if again["outcome"] != "passed":
                row |= {"outcome": again["outcome"], "error": f"loading: {again.get('error', '')}"}
        return {"family": family, "name": name} | row


def _apart(work: Callable[..., None], family: str, name: str, folder: str, seconds: float) -> Row:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    log = Path(folder) / f"{work.__name__}.jsonl"
    process = context.Process(target=_guarded, args=(work, family, name, folder, seconds))
    start = time.perf_counter()
    process.start()
    process.join(PATIENCE * seconds)
    late = process.is_alive() or process.exitcode == -signal.SIGXCPU
    if process.is_alive():
        process.kill()
        process.join()
    row: Row = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        row |= json.loads(line)
    if "outcome" not in row:
        why = (
            f"stopped after {seconds:.0f} s of processor time"
            if late
            else f"the process died with code {process.exitcode}"
        )
        row |= {"outcome": "slow" if late else "crashed", "error": f"{why} in {row.get('stage', 'building')}"}
    return row | {"wall_s": round(time.perf_counter() - start, 1)}


def _guarded(work: Callable[..., None], family: str, name: str, folder: str, seconds: float) -> None:
    import torch

    from benchmarks.coverage.families import find

    def keep(row: Row) -> None:
        with (Path(folder) / f"{work.__name__}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    try:
        work(find(family, name), Path(folder), keep)
    except Exception as error:  # noqa: BLE001 - whatever it raises is the result
        outcome = {"Refused": "refused", "UnknownOperation": "refused", "NothingToPrune": "refused"}.get(
            type(error).__name__, "failed"
        )
        keep(
            {
                "outcome": outcome,
                "error": f"{type(error).__name__}: {error}"[:900],
                "trace": traceback.format_exc()[-2500:],
            }
        )
    else:
        keep({"outcome": "passed"})


def _first(entry: Any, folder: Path, keep: Callable[[Row], None]) -> None:
    from benchmarks.coverage.check import check

    check(entry, folder, keep)


def _second(entry: Any, folder: Path, keep: Callable[[Row], None]) -> None:
    from benchmarks.coverage.check import Wrong, reload

    difference = reload(entry, folder)
    keep({"reloaded_difference": difference})
    if not difference <= 1e-6:
        raise Wrong(f"the loaded model differs by {difference:.1e}")


def _peer(entry: Any, folder: Path, keep: Callable[[Row], None]) -> None:
    from benchmarks.coverage.peer import check

    check(entry, keep, (folder / "peer").read_text())
