"""Executors: where candidates are evaluated. In this process, or in others; `secateur.evolution.on_ray.Ray` does it on a cluster.

An executor is a callable ``(arena) -> crew``; a crew is a callable ``(jobs) -> results``, closed at the end. A result is what the
arena returns, or None where the worker was lost: a worker that dies takes one evaluation along, is replaced, and the search asks again.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, final

import torch
import torch.multiprocessing as multi

from secateur.evolution.scoring import Arena, Job, Terms

__all__ = ["Crew", "Executor", "InProcess", "Processes"]


class Crew(Protocol):
    """Workers that know one arena."""

    def __call__(self, jobs: Sequence[Job]) -> list[Terms | None]:
        """Evaluate; None for each job whose worker was lost."""
        ...

    def close(self) -> None:
        """Send the workers home."""
        ...


Executor = Callable[[Arena], Crew]


@final
@dataclass(frozen=True, kw_only=True)
class InProcess:
    """One candidate after the other, here."""

    def __call__(self, arena: Arena) -> Crew:
        """A crew of one."""
        return _Here(arena)


class _Here:
    def __init__(self, arena: Arena) -> None:
        self.arena = arena

    def __call__(self, jobs: Sequence[Job]) -> list[Terms | None]:
        return [self.arena(job) for job in jobs]

    def close(self) -> None:
        pass


@final
@dataclass(frozen=True, kw_only=True)
class Processes:
    """Worker processes on this machine. A script that uses them needs ``if __name__ == "__main__":``.

    Args:
        workers: how many.
        threads: of each.
        method: how they are started: "spawn", "forkserver" or "fork".
    """

    workers: int = 2
    threads: int = 1
    method: str = "spawn"

    def __call__(self, arena: Arena) -> "ProcessCrew":
        """Start the workers."""
        return ProcessCrew(self, arena)


class ProcessCrew:
    """Running worker processes.

    Args:
        executor: how many, and how.
        arena: is sent to each of them once.
    """

    def __init__(self, executor: Processes, arena: Arena) -> None:
        self.executor, self.arena = executor, arena
        self.lost = 0
        self._context: Any = multi.get_context(executor.method)
        self._workers: list[tuple[Any, Connection]] = [self._hire() for _ in range(executor.workers)]

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return [process.pid for process, _ in self._workers]

    def __call__(self, jobs: Sequence[Job]) -> list[Terms | None]:
        """Hand out jobs to whoever is free; workers that die are replaced, and their jobs come back as None."""
        results: list[Terms | None] = [None] * len(jobs)
        waiting, busy = list(range(len(jobs)))[::-1], dict[int, int]()  # jobs; place of the worker to its job
        while waiting or busy:
            for place in range(len(self._workers)):
                if place not in busy and waiting:
                    busy[place] = waiting.pop()
                    self._send(place, jobs[busy[place]])
            pipes = {self._workers[place][1]: place for place in busy}
            for pipe in wait(list(pipes)):
                place = pipes[pipe]  # type: ignore[index]
                results[busy.pop(place)] = self._receive(place)
        return results

    def close(self) -> None:
        """Let the workers end."""
        for process, pipe in self._workers:
            pipe.close()  # the worker reads the end of the file
            process.join(5)
            if process.is_alive():
                process.terminate()
                process.join()

    def _send(self, place: int, job: Job) -> None:
        with suppress(OSError):  # it died since; its pipe is at its end, so `_receive` will find out
            self._workers[place][1].send(job)

    def _receive(self, place: int) -> Terms | None:
        process, pipe = self._workers[place]
        try:
            found = pipe.recv()
        except (EOFError, OSError):
            self.lost += 1
            pipe.close()
            process.join()
            self._workers[place] = self._hire()
            return None
        if isinstance(found, BaseException):
            raise found
        return Terms(*found)

    def _hire(self) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(self.arena, theirs, self.executor.threads), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def _work(arena: Arena, pipe: Connection, threads: int) -> None:
    """A worker's life: evaluate what comes in until the pipe ends."""
    torch.set_num_threads(threads)
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            found: Any = tuple(arena(job))
        except Exception as error:  # noqa: BLE001 - whatever it is, the search is to hear of it
            found = error
        pipe.send(found)
