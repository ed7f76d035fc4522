"""MONK's problems: how many weights OBS, OBD, magnitude and random deletion leave, over many starts, side by side in one batch.

Networks 17-3-1, 17-2-1 and 17-2-1 of sigmoid units, squared error, trained by Levenberg-Marquardt with weight decay until they reach the
paper's accuracy. Weights (biases too) leave one at a time, H is made anew after each; a run ends where training accuracy first falls below
the paper's. With retraining, 30 steps follow every deletion. What is left where a run ended is trained once more, to see what those weights
can do. All networks of a problem, for all methods, are one batch of tensors, and the surgery is that of `secateur.solvers.surgeon`.

    python -m benchmarks.monks            under two minutes
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import options, record, timed
from secateur.solvers.surgeon import inverse_by_cholesky, remove_, saliencies

PROBLEMS = {  # hidden units, weight decay, floor of the training accuracy, and the paper: weights before and after, train, test
    1: (3, 1e-3, 100.0, (58, 14, 100.0, 100.0)),
    2: (2, 1e-3, 100.0, (39, 15, 100.0, 100.0)),
    3: (2, 1e-1, 93.4, (39, 4, 93.4, 97.2)),  # a twentieth of its labels is wrong
}
METHODS = ("obs", "obd", "magnitude", "random")


def load(path: Path) -> tuple[Tensor, Tensor]:
    """One-hot inputs ``[rows, 17]`` and classes."""
    a = np.loadtxt(path, usecols=range(7), dtype=int)
    x = np.concatenate([np.eye(k)[a[:, i + 1] - 1] for i, k in enumerate((3, 3, 2, 3, 4, 2))], 1)
    return torch.from_numpy(x), torch.from_numpy(a[:, 0]).double()


class Nets:
    """Many networks 17-h-1 at once; ``w`` is ``[nets, weights]``, ``alive`` says which weights are left."""

    def __init__(self, w: Tensor, hidden: int) -> None:
        self.w, self.hidden, self.alive = w, hidden, torch.ones_like(w, dtype=torch.bool)

    def run(self, w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs ``[nets, rows]`` and their derivatives by the weights ``[nets, rows, weights]``."""
        h = self.hidden
        first, b1 = w[:, : 17 * h].view(-1, h, 17), w[:, 17 * h : 18 * h]
        second, b2 = w[:, 18 * h : 19 * h], w[:, 19 * h :]
        states = torch.sigmoid(x @ first.mT + b1.unsqueeze(1))  # [nets, rows, h]
        out = torch.sigmoid((states * second.unsqueeze(1)).sum(2) + b2)
        slope = (out * (1 - out)).unsqueeze(2)
        back = slope * second.unsqueeze(1) * states * (1 - states)
        jacobian = torch.cat([(back.unsqueeze(3) * x[:, None, :]).flatten(2), back, slope * states, slope], 2)
        return out, jacobian

    def accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """Per cent right, ``[nets]``."""
        return 100 * ((self.run(self.w, x)[0] > 0.5) == (y > 0.5)).double().mean(1)

    def train(self, x: Tensor, y: Tensor, decay: float, steps: int) -> None:
        """Levenberg-Marquardt on sum of squares + decay * |w|^2, every network with a damping of its own."""
        mu = torch.full((len(self.w), 1), 0.1, dtype=torch.float64)
        out, jacobian = self.run(self.w, x)
        cost = (out - y).square().sum(1) + decay * self.w.square().sum(1)
        eye = torch.eye(self.w.shape[1], dtype=torch.float64)
        for _ in range(steps):
            j = jacobian * self.alive.unsqueeze(1)
            gradient = (j.mT @ (out - y).unsqueeze(2)).squeeze(2) + decay * self.w
            system = j.mT @ j + (decay + mu).unsqueeze(2) * eye
            step = torch.linalg.solve(system, gradient) * self.alive
            fresh = self.w - step
            o, jac = self.run(fresh, x)
            c = (o - y).square().sum(1) + decay * fresh.square().sum(1)
            good = c < cost
            self.w = torch.where(good.unsqueeze(1), fresh, self.w)
            out, cost = torch.where(good.unsqueeze(1), o, out), torch.where(good, c, cost)
            jacobian = torch.where(good.view(-1, 1, 1), jac, jacobian)
            mu = torch.where(good.unsqueeze(1), mu / 3, mu * 4).clamp(1e-9, 1e6)


def starts(problem: int, x: Tensor, y: Tensor, count: int, seed: int) -> tuple[Nets, int]:
    """``count`` trained networks that reach the floor, and how many had to be tried."""
    hidden, decay, floor, _ = PROBLEMS[problem]
    generator, found, tried = torch.Generator().manual_seed(seed), [], 0
    while sum(map(len, found)) < count and tried < 50 * count:
        nets = Nets(torch.randn(count, 19 * hidden + 1, generator=generator, dtype=torch.float64), hidden)
        nets.train(x, y, decay, 300)
        found.append(nets.w[nets.accuracy(x, y) >= floor - 0.05])
        tried += count
    return Nets(torch.cat(found)[:count], hidden), tried


def choose(method: str, nets: Nets, jacobian: Tensor, inverse: Tensor, generator: torch.Generator) -> Tensor:
    """Which weight of each network leaves."""
    if method == "obs":
        score = saliencies(nets.w, inverse, nets.alive)
    elif method == "obd":
        score = nets.w.square() * jacobian.square().mean(1) / 2
    elif method == "magnitude":
        score = nets.w.abs()
    else:
        score = torch.rand(nets.w.shape, generator=generator, dtype=torch.float64)
    return score.masked_fill(~nets.alive, torch.inf).argmin(1)


def prune(
    problem: int, trained: Nets, data: tuple[Tensor, Tensor, Tensor, Tensor], *, retrain: int, seed: int
) -> list[dict[str, Any]]:
    """Delete weight after weight with every method; a row for each network."""
    x, y, x_test, y_test = data
    _, decay, floor, _ = PROBLEMS[problem]
    count, size = trained.w.shape
    nets = Nets(trained.w.repeat(len(METHODS), 1), trained.hidden)
    generator = torch.Generator().manual_seed(seed)
    left = torch.full((len(nets.w),), size)
    going = torch.ones(len(nets.w), dtype=torch.bool)
    train, test = nets.accuracy(x, y), nets.accuracy(x_test, y_test)
    last = Nets(nets.w.clone(), trained.hidden)  # where each run ends
    for removed in range(1, size):
        _, jacobian = nets.run(nets.w, x)
        obs = slice(0, count)
        j = jacobian[obs] * nets.alive[obs].unsqueeze(1)
        inverse = inverse_by_cholesky(j, len(x), decay / len(x))
        which = torch.cat(
            [_of(method, at, count, nets, jacobian, inverse, generator) for at, method in enumerate(METHODS)]
        )
        weights, alive = nets.w[obs].clone(), nets.alive[obs].clone()
        remove_(weights, inverse, alive, which[obs])
        nets.alive.scatter_(1, which.unsqueeze(1), torch.zeros(len(which), 1, dtype=torch.bool))
        nets.w[obs] = weights
        nets.w = nets.w * nets.alive
        if retrain:
            nets.train(x, y, decay, retrain)
        right = nets.accuracy(x, y)
        going &= right >= floor - 0.05
        left = torch.where(going, size - removed, left)
        train, test = torch.where(going, right, train), torch.where(going, nets.accuracy(x_test, y_test), test)
        last.w, last.alive = (
            torch.where(going.unsqueeze(1), a, b) for a, b in ((nets.w, last.w), (nets.alive, last.alive))
        )
        if not bool(going.any()):
            break
    last.train(x, y, decay, 300)
    again = last.accuracy(x, y), last.accuracy(x_test, y_test)
    return [
        {"problem": problem, "method": METHODS[i // count], "retrained": retrain, "start": i % count, "left": int(left[i]),
         "train": round(float(train[i]), 2), "test": round(float(test[i]), 2),
         "train_again": round(float(again[0][i]), 2), "test_again": round(float(again[1][i]), 2)}
        for i in range(len(left))
    ]  # fmt: skip


def _of(
    method: str, at: int, count: int, nets: Nets, jacobian: Tensor, inverse: Tensor, generator: torch.Generator
) -> Tensor:
    part = Nets(nets.w[at * count : (at + 1) * count], nets.hidden)
    part.alive = nets.alive[at * count : (at + 1) * count]
    return choose(method, part, jacobian[at * count : (at + 1) * count], inverse, generator)


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Fewest weights, and of those what is best when it has been trained once more."""
    return min(rows, key=lambda row: (row["left"], -row["test_again"], -row["test"]))


def summary(rows: list[dict[str, Any]], pick: Callable[[dict[str, Any]], bool]) -> str:
    """Best, median and worst, with the accuracies of the best."""
    own = [row for row in rows if pick(row)]
    lefts, best = sorted(row["left"] for row in own), best_of(own)
    accuracies = f"{best['train']:.1f}/{best['test']:.1f}, {best['train_again']:.1f}/{best['test_again']:.1f}"
    return f"{best['left']} ({int(np.median(lefts))}, {lefts[-1]}) {accuracies}"


def main() -> None:
    """Run all and write ``results/monks.json``."""
    parser = options(__doc__)
    parser.add_argument("--starts", type=int, default=20)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def work() -> None:
        for problem in PROBLEMS:
            data = (
                *load(args.data / "monks" / f"monks-{problem}.train"),
                *load(args.data / "monks" / f"monks-{problem}.test"),
            )
            trained, tried = starts(problem, data[0], data[1], args.starts, seed=problem)
            print(f"MONK-{problem}: {len(trained.w)} of {tried} starts reach the floor; paper {PROBLEMS[problem][3]}")
            for retrain in (0, 30):
                rows.extend(prune(problem, trained, data, retrain=retrain, seed=problem))
                for method in METHODS:
                    said = summary(
                        rows,
                        lambda r, m=method, p=problem, n=retrain: (
                            (r["problem"], r["method"], r["retrained"]) == (p, m, n)
                        ),
                    )
                    print(
                        f"   retrain {retrain:2d}  {method:10s} best (median, worst) train/test of the best, and trained once more: {said}",
                        flush=True,
                    )

    _, seconds = timed(work)
    print(f"{seconds:.1f} s")
    if not args.quick:
        record(
            "monks",
            rows,
            out=args.out,
            seconds=round(seconds, 1),
            paper={p: s[3] for p, s in PROBLEMS.items()},
        )


if __name__ == "__main__":
    main()
