"""Structured ADMM on a Fashion-MNIST convnet: accuracy against measured latency of the narrowed network, beside L1 and Taylor.

All begin at the same dense network and end within the same multiply-accumulates. ADMM pulls channels out over the first 60 % of the steps and
tunes the rest; L1 and Taylor take them out at once and then train all steps. Latency: one thread, batch 16, the networks in turns.

    python -m benchmarks.structured_admm
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from benchmarks.data import load_fashion
from benchmarks.energy import fit
from benchmarks.record import options, record
from benchmarks.training import accuracy
from secateur.costs.latency import Latency


def make() -> nn.Module:
    """Four 3x3 convolutions with batch norms, the first with stride 2."""
    layers: list[nn.Module] = []
    for inside, out, stride in ((1, 16, 2), (16, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


def main() -> None:
    """Write ``results/structured_admm.json``."""
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--dense-steps", type=int, default=1400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load_fashion(args.data)
    torch.manual_seed(0)
    dense = make()
    fit(dense, data, steps=args.dense_steps, lr=2e-3, batch=64, begin=None)
    dense.eval()
    x, networks = data.x_train[:16], {("dense", 100): dense}
    task = sc.Task(
        [(data.x_train[k : k + 64], data.y_train[k : k + 64]) for k in range(0, 640, 64)],
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
    )
    for budget in (50, 25):
        text = f"macs:{budget}%"
        for method in ("admm", "magnitude", "taylor"):
            model = copy.deepcopy(dense)
            if method == "admm":
                chosen = sc.methods.ADMM(
                    budget=text, granularity="channel", rho=3e-3, growth=1.3, iterations=8, min_kept=2
                )
                begin = lambda m, o, c=chosen: c.start(m, o, example_inputs=x, total_steps=args.steps)  # noqa: E731
                pruned = fit(model, data, steps=args.steps, lr=2e-3, batch=64, begin=begin).finish()
                model = pruned.model
                print(pruned.report.notes[0], flush=True)
            else:
                model = sc.prune(
                    dense, method, budget=text, granularity="channel", example_inputs=x, task=task, min_kept=2
                ).model
                fit(model, data, steps=args.steps, lr=2e-3, batch=64, begin=None)
            networks[method, budget] = model.eval()
            print(method, budget, accuracy(model, data.x_test, data.y_test), flush=True)
    times = Latency(seconds=1.0, threads=1).measure(list(networks.values()), x)
    macs = sc.profile(dense, x).macs
    rows = [
        {
            "method": method,
            "macs_budget": budget,
            "macs": sc.profile(model, x).macs / macs,
            "accuracy": accuracy(model, data.x_test, data.y_test),
            "latency": time / times[0],
            "widths": [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)],
        }
        for ((method, budget), model), time in zip(networks.items(), times, strict=True)
    ]
    for row in rows:
        print(row, flush=True)
    if not args.quick:
        record("structured_admm", rows, out=args.out, steps=args.steps, dense_steps=args.dense_steps, dense_ms=times[0])


if __name__ == "__main__":
    main()
