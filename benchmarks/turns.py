"""Calls timed in turns, so that a busy moment of the machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def rounds_in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """For each call, one median in seconds a round: every round runs each once to warm it up, then ``repeats`` times."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            took = []
            for _ in range(repeats):
                start = time.perf_counter()
                call()
                took.append(time.perf_counter() - start)
            samples[name].append(statistics.median(took))
    return samples
