"""Several Python threads call one program on several engine threads: run under ThreadSanitizer, without torch."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

import secateur_engine

TOKENS, WIDTH = 40, 48


def main() -> None:
    """One sparse product and a norm, called at once from many threads."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((WIDTH, WIDTH)) * (rng.random((WIDTH, WIDTH)) < 0.3)).astype(np.float32)
    rows, columns = np.nonzero(weights)
    starts = np.searchsorted(rows, np.arange(WIDTH + 1)).astype(np.int32)
    arrays = [
        np.zeros(WIDTH, np.float32),
        np.arange(WIDTH, dtype=np.int32),
        np.zeros(WIDTH, np.int32),
        starts,
        columns.astype(np.int32),
        weights[rows, columns],
    ]
    stride, size = 64, 64 * WIDTH + 64
    slot = [[2, k, 0, [WIDTH, TOKENS], [TOKENS, 1]] for k in range(2)]
    x, y = ([0, 0, k * size, [WIDTH, TOKENS], [stride, 1]] for k in range(2))
    steps = [
        ["copy", [slot[0], x], [], [], []],
        ["product", [x, y], [1, 0, 0, 0, 0, 0, 1, 0, WIDTH, 1], ["-inf", "inf", 0.0, 1.0], [0, 1, 2, 3, 4, 5]],
        ["copy", [y, slot[1]], [], [], []],
    ]
    shape = {"shape": [WIDTH, TOKENS], "dtype": "float32"}
    program = {
        "size": WIDTH,
        "arena": 2 * size,
        "state": 0,
        "inputs": [{**shape, "split": True}],
        "outputs": [shape],
        "steps": steps,
    }
    model = secateur_engine.Model({"programs": [program]}, arrays, threads=3).built()
    inputs = [rng.standard_normal((WIDTH, TOKENS)).astype(np.float32) for _ in range(4)]
    together(model, inputs, [np.clip(weights @ x, 0, 1) for x in inputs], 50)


def striped(folder: Path) -> None:
    """What `striped_model.py` wrote."""
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    together(secateur_engine.load(folder / "striped.sc", threads=3), [x] * 3, [y] * 3, 10)


def together(
    model: Callable[[np.ndarray], np.ndarray], inputs: list[np.ndarray], expected: list[np.ndarray], times: int
) -> None:
    """Call from as many threads as there are inputs."""
    wrong: list[float] = []

    def call(k: int) -> None:
        wrong.extend(float(np.abs(model(inputs[k]) - expected[k]).max()) for _ in range(times))

    workers = [threading.Thread(target=call, args=(k,)) for k in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(wrong) == times * len(inputs)
    assert max(wrong) < 1e-4, max(wrong)
    print(f"{len(wrong)} calls from {len(workers)} threads: all right")


if __name__ == "__main__":
    main()
    striped(Path(sys.argv[1]))
