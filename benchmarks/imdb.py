"""IMDB: the LSTM example of the TensorFlow toolkit; dense, one-shot and gradual rows at 50-98 % with random controls.

As in the toolkit: embedding 128 wide, LSTM 128, one sigmoid output, the last 100 tokens, batch 32, Adam at 1e-3, three epochs
from scratch, every layer pruned to the same fraction. Shortened against it: 10,000 training reviews instead of 25,000 (so 936
steps instead of 2,346), 5,000 test reviews instead of 25,000, a vocabulary of 10,000 words instead of 20,000, and reviews are
cut at 256 tokens before the last 100 are taken. Gradual rows train for exactly as many steps as the dense one, also from
scratch, with sparsity rising between 20 % and 75 % of them.

The toolkit's own schedule ends at step 3,000 of its 2,346, so it stops short of its target; `trap` shows what becomes of it here.

    python -m benchmarks.imdb
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

import secateur as sc
from benchmarks.data import Split, load_imdb
from benchmarks.mnist import criterion_named
from benchmarks.nets import SentimentLSTM
from benchmarks.record import gzip_bytes, options, plain_bytes, record
from benchmarks.training import accuracy, sigmoid_loss, train

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
CONTROLS = (0.8, 0.95)  # gradual random controls: each costs a training
BATCH, EPOCHS = 32, 3
LAST_STEP_OF_TOOLKIT = 3 * 782


def trap() -> str:
    """What Secateur says to the toolkit's schedule: 30 % to 70 % between steps 1,000 and 3,000 of 2,346.

    >>> print(trap()[:64])
    the schedule ends at step 3000, but training stops after 2346 ste
    """
    model = torch.nn.Linear(4, 4)
    schedule = sc.PolynomialDecay(initial_sparsity=0.3, begin_step=1000, end_step=3000)
    method = sc.methods.Gradual(sparsity=0.7, schedule=schedule)
    try:
        method.start(model, torch.optim.Adam(model.parameters()), total_steps=LAST_STEP_OF_TOOLKIT)
    except sc.errors.BadSchedule as refusal:
        return str(refusal)
    raise AssertionError("the schedule that ends after training was accepted")


def gradual_row(data: Split, seed: int, criterion: str, sparsity: float) -> dict[str, Any]:
    """Train from scratch while sparsity rises."""
    steps = len(data.x_train) // BATCH * EPOCHS
    schedule = sc.PolynomialDecay(begin_step=int(0.2 * steps), end_step=int(0.75 * steps), frequency=25)
    method = sc.methods.Gradual(
        sparsity=sparsity, schedule=schedule, criterion=criterion_named(criterion, seed), scope="layer"
    )
    model, runs = fresh(seed), []

    def begin(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        runs.append(method.start(model, optimizer, total_steps=steps))
        return runs[0].step

    train_lstm(model, data, seed, begin)
    pruned = runs[0].finish()
    return row("gradual", pruned.model, data, criterion=criterion, scope="layer", sparsity=sparsity, masks=pruned.masks)


def one_shot_rows(dense: torch.nn.Module, data: Split, seed: int) -> Iterator[dict[str, Any]]:
    """Prune the dense network at once."""
    for criterion, scope in (("magnitude", "layer"), ("magnitude", "global"), ("random", "layer")):
        for sparsity in SPARSITIES:
            pruned = sc.prune(dense, criterion, sparsity=sparsity, scope=scope, seed=seed)
            yield row(
                "one-shot", pruned.model, data, criterion=criterion, scope=scope, sparsity=sparsity, masks=pruned.masks
            )


def row(
    method: str, model: torch.nn.Module, data: Split, *, masks: sc.Masks | None = None, **what: Any
) -> dict[str, Any]:
    """One row of the table."""
    counts = {"kept": masks.kept, "weights": masks.total} if masks else {"plain_bytes": plain_bytes(model)}
    score = accuracy(model, data.x_test, data.y_test)
    return {"method": method, **what, "accuracy": score, "gzip_bytes": gzip_bytes(model), **counts}


def fresh(seed: int) -> SentimentLSTM:
    """An untrained network; the same one for every row of a seed."""
    torch.manual_seed(seed)
    return SentimentLSTM()


def train_lstm(model: torch.nn.Module, data: Split, seed: int, begin: Any = None) -> torch.nn.Module:
    """Three epochs."""
    return train(model, data, epochs=EPOCHS, seed=seed, batch=BATCH, loss=sigmoid_loss, begin=begin)


def rows_of(data: Split, seed: int) -> Iterator[dict[str, Any]]:
    """All rows of one seed."""
    dense = train_lstm(fresh(seed), data, seed)
    yield row("dense", dense, data, criterion="", scope="", sparsity=0.0)
    yield from one_shot_rows(dense, data, seed)
    for criterion, sparsities in (("magnitude", SPARSITIES), ("random", CONTROLS)):
        for sparsity in sparsities:
            yield gradual_row(data, seed, criterion, sparsity)


def main() -> None:
    """Measure and write ``results/imdb.json`` after every seed."""
    args = options(__doc__).parse_args()
    data, rows = load_imdb(args.data), []
    if args.quick:
        data = Split(data.x_train[:640], data.y_train[:640], data.x_test[:500], data.y_test[:500])
    print("the toolkit's schedule:", trap())
    for seed in range(1 if args.quick else args.seeds):
        for found in rows_of(data, seed):
            rows.append({"network": "imdb_lstm", "seed": seed} | found)
            print(seed, *(found[key] for key in ("method", "criterion", "scope", "sparsity", "accuracy")), flush=True)
        if not args.quick:
            record("imdb", rows, out=args.out, epochs=EPOCHS, batch=BATCH, lr=1e-3, toolkit_schedule=trap())


if __name__ == "__main__":
    main()
