"""The engine against torch on networks drawn at random, at several sparsities each.

    python tests/e2e/engine_graphs.py --first 0 --count 5000         10^5 cases, an hour; prints what differs

Every network (`random_networks.py`: 1 to 10 layers with branches, over images, sequences or vectors) is captured once and compiled at twenty
sparsities, in single zeros and in blocks, 0 and 100 % among them. A case is one network at one sparsity: its outputs against those of torch,
as a share of the largest value; where that is large, against float64, from which neither may be much farther than the other. An operation that the engine refuses by name is counted apart.
"""

import argparse
import copy
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.e2e.random_networks import drawn
from tests.runtime.engine_zoo import apart, sparse_

import secateur as sc

CLOSE = 1e-4
SPARSITIES = (0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.9, 0.95, 0.97, 0.99, 1.0)


@contextmanager
def captured_once() -> Iterator[None]:
    """Capture at the first call only; later calls get the same graph with the weights of then."""
    real, held = torch.export.export, list[Any]()

    def export(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not held:
            held.append(program := real(model, *args, **kwargs))
            module = program.module()
            program.module = lambda: module  # shares the weights that are copied below
        for name, value in model.state_dict().items():
            held[0].state_dict[name].data.copy_(value)
        return held[0]

    with mock.patch("torch.export.export", export):
        yield


def cases(seed: int) -> Iterator[tuple[str, float]]:
    """What was tried on the network of this number: how, and how far apart it is."""
    dice = random.Random(seed)
    model, x = drawn(seed)
    whole = copy.deepcopy(model.state_dict())
    with captured_once(), torch.no_grad():
        for sparsity in SPARSITIES:
            height, threads = dice.choice([1, 1, 2, 4]), dice.choice([1, 1, 2])
            model.load_state_dict(whole)
            sparse_(model, sparsity, height, dice.randrange(10**6))
            form, stripes = dice.choice([None] * 6 + ["1", "2", "4", "dense"]), dice.choice([True, False, 2])
            fast = sc.compile(model, x, threads=threads, form=form, stripes=stripes)
            how = f"network {seed}, sparsity {sparsity}, height {height}, threads {threads}, form {form}, stripes {stripes}"
            found, expected = fast(x), model(x)
            difference = apart(found, expected)
            yield how, difference if difference <= CLOSE or not _noise(model, x, found, expected) else math.nan


def _noise(model: nn.Module, x: Tensor, found: Any, expected: Any) -> bool:
    """Whether both are off by rounding: norms of what is the same everywhere give only that."""
    exact = copy.deepcopy(model).double()(x.double())
    return all(
        float((a - c).abs().max()) <= 32 * float((b - c).abs().max()) + 1e-6
        for a, b, c in zip(found, expected, exact, strict=True)
    )


def main() -> None:
    """Run and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=25_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found, worst = Counter[str](), 0.0
    for seed in range(given.first, given.first + given.count):
        try:
            for how, difference in cases(seed):
                found["cases"] += 1
                if math.isnan(difference):
                    found["rounding alone"] += 1
                    continue
                worst = max(worst, difference if difference <= CLOSE else 0.0)
                if not difference <= CLOSE:
                    found["differ"] += 1
                    print(f"DIFFERS by {difference:.3g}: {how}", flush=True)
        except sc.errors.UnknownOperation as error:
            found["refused"] += 1
            print(f"refused, network {seed}: {str(error)[:200]}", flush=True)
        except Exception as error:  # noqa: BLE001  whatever it is, the run goes on and tells
            found["errors"] += 1
            print(f"ERROR, network {seed}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        if (seed - given.first + 1) % 500 == 0:
            print(f"{seed - given.first + 1} networks: {dict(found)}, largest difference {worst:.2g}", flush=True)
    print(f"networks {given.first} to {given.first + given.count - 1}: {dict(found)}, largest difference {worst:.2g}")
    sys.exit(bool(found["differ"] or found["errors"]))


if __name__ == "__main__":
    main()
