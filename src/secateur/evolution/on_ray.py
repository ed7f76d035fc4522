"""Candidates evaluated on a Ray cluster; Ray is an optional package (``pip install 'secateur[ray]'``)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from secateur.errors import NeedsPackage
from secateur.evolution.scoring import Arena, Job, Terms

__all__ = ["Ray"]


@final
@dataclass(frozen=True, kw_only=True)
class Ray:
    """Actors of Ray; one that dies is replaced, and its evaluation is asked for again.

    Args:
        workers: how many actors.
        address: of the cluster, as `ray.init` takes it; None: the one that is connected, or a local one of as many CPUs.
        threads: of each actor, which are also the CPUs that it asks the cluster for.
        gpus: that each asks for.
    """

    workers: int = 2
    address: str | None = None
    threads: int = 1
    gpus: float = 0.0

    def __call__(self, arena: Arena) -> "RayCrew":
        """Start the actors.

        Raises:
            NeedsPackage: Ray is not installed.
        """
        try:
            import ray
        except ImportError:
            raise NeedsPackage(
                "the Ray executor needs Ray, which is not installed: pip install 'secateur[ray]', or use Processes()"
            ) from None
        return RayCrew(self, arena, ray)


class _Worker:
    """What runs in an actor."""

    def __init__(self, arena: Arena, threads: int) -> None:
        torch.set_num_threads(threads)
        self.arena = arena

    def pid(self) -> int:
        return os.getpid()

    def evaluate(self, job: Job) -> tuple[float, ...]:
        return tuple(self.arena(job))


class RayCrew:
    """Running actors.

    Args:
        executor: how many, and how.
        arena: is put into Ray's object store once.
        ray: the package.
    """

    def __init__(self, executor: Ray, arena: Arena, ray: Any) -> None:
        self.ray, self.lost = ray, 0
        self.started = not ray.is_initialized()
        if self.started:
            local = (
                {}
                if executor.address
                else {"num_cpus": executor.workers * executor.threads, "include_dashboard": False}
            )
            ray.init(address=executor.address, log_to_driver=False, **local)
        self._kind = ray.remote(num_cpus=executor.threads, num_gpus=executor.gpus, max_restarts=0, max_task_retries=0)(
            _Worker
        )
        self._shared, self._threads = ray.put(arena), executor.threads
        self.actors = [self._hire() for _ in range(executor.workers)]

    @property
    def pids(self) -> list[int]:
        """The process ids of the actors, each on its machine."""
        return list(self.ray.get([actor.pid.remote() for actor in self.actors]))

    def __call__(self, jobs: Sequence[Job]) -> list[Terms | None]:
        """Hand out jobs to whichever actor is free; None where the actor died."""
        results: list[Terms | None] = [None] * len(jobs)
        waiting, busy = list(range(len(jobs)))[::-1], dict[Any, tuple[int, Any]]()
        free = list(self.actors)
        while waiting or busy:
            while free and waiting:
                actor, job = free.pop(), waiting.pop()
                busy[actor.evaluate.remote(jobs[job])] = (job, actor)
            (done,), _ = self.ray.wait(list(busy), num_returns=1)
            job, actor = busy.pop(done)
            results[job] = self._result(done)
            free.append(actor if results[job] is not None else self._replace(actor))
        return results

    def close(self) -> None:
        """End the actors, and Ray itself where it was started here."""
        for actor in self.actors:
            self.ray.kill(actor)
        if self.started:
            self.ray.shutdown()

    def _hire(self) -> Any:
        return self._kind.remote(self._shared, self._threads)

    def _replace(self, actor: Any) -> Any:
        fresh = self._hire()
        self.actors[self.actors.index(actor)] = fresh
        return fresh

    def _result(self, done: Any) -> Terms | None:
        try:
            return Terms(*self.ray.get(done))
        except self.ray.exceptions.RayTaskError as error:  # the arena's own error
            raise error.as_instanceof_cause() from error
        except self.ray.exceptions.RayError:  # the actor died, or its machine
            self.lost += 1
            return None
