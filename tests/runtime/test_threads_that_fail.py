"""What fails in one of the engine's threads comes out of the call, as from one thread, and the process lives on."""

import subprocess
import sys

import pytest

import secateur_engine

pytestmark = [
    pytest.mark.skipif(not secateur_engine.available(), reason="the compiled engine is missing"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process reliably"),
]
START = """
import pathlib, resource, sys
import numpy as np
import secateur_engine

def limit(more):
    now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))

def model(depth, threads):
    # A product whose right side is one number, repeated: copied to the scratch of every thread, depth * 16384 floats.
    operands = [[[1, 4, depth], [0] * 3], [[1, depth, 1 << 14], [0] * 3], [[1, 4, 1 << 14], [0] * 3]]
    step = ["matmul", [[0, 0, 64, *one] for one in operands], [], [], []]
    slot = {"shape": [4], "dtype": "float32", "split": False}
    program = {"size": 1, "arena": 256, "state": 0, "inputs": [slot], "outputs": [slot], "steps": [step] * 3}
    return secateur_engine.Model({"programs": [program]}, [], threads=threads).built()

threads = int(sys.argv[1])
x = np.zeros(4, np.float32)
"""


def _run(text, threads):
    done = subprocess.run(
        [sys.executable, "-c", START + text, str(threads)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_memory_that_is_not_there_is_an_error(threads):
    text = """
model(1, threads)(x)  # the threads are there
limit(1 << 29)
for _ in range(2):
    try:
        model(1 << 15, threads)(x)
    except MemoryError:
        print("refused")
model(1, threads)(x)
print("alive")
"""
    assert _run(text, threads) == ["refused", "refused", "alive"]


def test_threads_that_are_not_there_are_an_error():
    text = """
limit(1 << 28)
try:
    model(1, threads)(x)
except RuntimeError:
    print("refused")
model(1, 2)(x)
print("alive")
"""
    assert _run(text, 256) == ["refused", "alive"]
