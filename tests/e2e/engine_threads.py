"""Several Python threads call one program on several engine threads: run under ThreadSanitizer, without torch."""

import threading

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
    wrong: list[float] = []

    def call(k: int) -> None:
        expected = np.clip(weights @ inputs[k], 0, 1)
        wrong.extend(float(np.abs(model(inputs[k]) - expected).max()) for _ in range(50))

    workers = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert max(wrong) < 1e-4, max(wrong)
    print(f"{len(wrong)} calls from {len(workers)} threads: all right")


if __name__ == "__main__":
    main()
