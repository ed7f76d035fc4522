"""Accuracy against energy (the analytic systolic-array model): LeNet-5 on MNIST, ResNet-20 on CIFAR-10, fine-tuned a little.

Every row begins at the same dense network, takes as many steps on the same batches at the same rates, and ends within the same energy:

    energy      `EnergyConstrained`: weights by square per energy, under a decaying budget (the paper's)
    fisher      the same with metric="fisher": by square times curvature per energy
    magnitude   the same loop and budget; all weights in one ranking by size, as many as the energy allows
    macs        channels leave at once, within the most multiply-accumulates that the energy allows (L1 per MAC); then the same steps
    width       channels leave at once, the same fraction of every layer (L1), until the energy is met; then the same steps
    ecc         `ECC`: channels leave while the network trains, under an energy budget

    python -m benchmarks.energy --network lenet_5
"""

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from benchmarks import nets
from benchmarks.data import Split, load_cifar, load_mnist
from benchmarks.record import options, record, timed
from benchmarks.training import accuracy, each_batch
from secateur.costs.energy import Energy
from secateur.granularities.unstructured import Unstructured
from secateur.planning import plan
from secateur.scores import Scores
from secateur.spending import Spending
from secateur.targets import find_targets

BUDGETS = (60, 40, 25, 15)
METHODS = ("fisher", "energy", "magnitude", "width", "ecc", "macs")
EVERY = 10


class Following:
    """The loop of `EnergyConstrained` with another ranking: the most of it that the energy of the moment allows."""

    def __init__(self, model: nn.Module, optimizer: Any, x: torch.Tensor, *, budget: str, end: int) -> None:
        self.model, self.optimizer, self.end = model, optimizer, end
        self.spending, self.targets = Spending(model, budget, x), find_targets(model)
        self.steps, self.hold = 0, None

    def penalty(self) -> torch.Tensor:
        return torch.zeros(())

    def step(self) -> None:
        """Project, and hold when the budget is reached."""
        self.steps += 1
        if self.hold is None and self.steps >= self.end:
            self.hold = sc.hold(self.model, self.masks(self.spending.limit), self.optimizer)
            self.optimizer.state.clear()
        elif self.hold is None and self.steps % EVERY == 0:
            share = self.steps / self.end
            self.masks(self.spending.dense * (self.spending.limit / self.spending.dense) ** share).apply_(self.model)

    def masks(self, limit: float) -> sc.Masks:
        """As many of the ranking as the energy pays for."""
        weights = {name: self.model.get_parameter(name).detach() for name in self.targets}
        ranks, costs, owners = [], [], []
        for k, (name, w) in enumerate(weights.items()):
            ranks.append(w.abs().flatten().sort(descending=True).values.double())
            ((cache, near), (_, far)) = self.spending.prices[name]
            costs.append(torch.where(torch.arange(w.numel()) < cache, near, far))
            owners.append(torch.full((w.numel(),), k))
        order = torch.cat(ranks).argsort(descending=True, stable=True)
        spent = self.spending.fixed + torch.cat(costs)[order].cumsum(0)
        kept = torch.bincount(torch.cat(owners)[order[: int((spent <= limit).sum())]], minlength=len(weights)).tolist()
        counts = dict(zip(weights, kept, strict=True))
        return plan(Scores(weights, each=torch.abs, facts=self.targets), Unstructured(), lambda _: counts)

    def finish(self) -> Any:
        """The masked model."""
        self.hold.apply_()
        self.hold.release()
        return self.model


def fit(model: nn.Module, data: Split, *, steps: int, lr: float, batch: int, begin: Callable[..., Any] | None) -> Any:
    """As many steps of Adam, the rate falling to zero over the second half."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    run = begin(model, optimizer) if begin else None
    model.train()
    batches = each_batch(data, 1000, batch, torch.Generator().manual_seed(7))
    for step, (x, y) in zip(range(steps), batches, strict=False):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if run is not None:
            run.step()
    return run


def by_macs(dense: nn.Module, share: float, x: torch.Tensor) -> nn.Module:
    """The widest network within some multiply-accumulates that takes at most ``share`` of the energy."""
    low, high, found = 0.0, 1.0, dense
    (limit,) = Energy().measure([dense], x)
    for _ in range(10):
        middle = (low + high) / 2
        text = f"macs:{100 * middle:.4f}%"
        try:
            narrow = sc.prune(dense, "magnitude", budget=text, granularity="channel", example_inputs=x).model
        except sc.errors.OverBudget:  # fewer than there can be
            low = middle
            continue
        if Energy().measure([narrow], x)[0] <= share * limit:
            low, found = middle, narrow
        else:
            high = middle
    return found


def row_of(method: str, budget: int, dense: nn.Module, data: Split, args: Any) -> dict[str, Any]:
    """Train one and measure it."""
    x, text = data.x_train[:1], f"energy:{budget}%"
    model, end = copy.deepcopy(dense), int(0.5 * args.steps)
    settings = {"steps": args.steps, "lr": args.lr, "batch": args.batch}
    if method == "width":
        model = sc.prune(dense, "magnitude", budget=text, granularity="channel", scope="layer", example_inputs=x).model
        fit(model, data, begin=None, **settings)
    elif method == "macs":
        model = by_macs(dense, budget / 100, x)
        fit(model, data, begin=None, **settings)
    elif method in ("energy", "fisher", "ecc"):
        kind = sc.methods.ECC if method == "ecc" else sc.methods.EnergyConstrained
        chosen = kind(budget=text, every=EVERY, end_step=end, **({"metric": "fisher"} if method == "fisher" else {}))
        model = fit(model, data, begin=lambda m, o: chosen.start(m, o, example_inputs=x), **settings).finish().model
    else:
        model = fit(model, data, begin=lambda m, o: Following(m, o, x, budget=text, end=end), **settings).finish()
    before, after = Energy().measure([dense, model], x)
    kept = sum(int(p.count_nonzero()) for p in model.parameters() if p.dim() > 1)
    return {"accuracy": accuracy(model, data.x_test, data.y_test), "energy": after / before, "kept": kept}


def main() -> None:
    """Write ``results/energy_<network>.json`` after every row."""
    parser = options(__doc__)
    parser.add_argument("--network", choices=["lenet_5", "resnet20"], default="lenet_5")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dense", help="weights of LeNet-5 to begin at; trained here for two epochs if left out")
    parser.add_argument("--again", action="store_true", help="measure every row again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.network == "resnet20":
        data, dense = load_cifar(args.data), nets.load_resnet(str(args.data / "models" / "resnet20_cifar10.pt"), 3)
    else:
        data, dense = load_mnist(args.data), nets.make_lenet_5()
        if args.dense:
            dense.load_state_dict(torch.load(args.dense, weights_only=True))
        else:
            torch.manual_seed(0)
            fit(dense, data, steps=1874, lr=1e-3, batch=64, begin=None)
    dense = dense.to(memory_format=torch.channels_last)
    (whole_energy,) = Energy().measure([dense], data.x_train[:1])
    rows: list[dict[str, Any]] = [
        {"method": "dense", "budget": 100, "accuracy": accuracy(dense, data.x_test, data.y_test), "energy": 1.0}
    ]
    path = args.out / f"energy_{args.network}.json"
    if path.exists() and not args.again:  # go on where an earlier run was cut off
        rows = json.loads(path.read_text())["rows"]
    done = {(row["method"], row["budget"]) for row in rows}
    print(rows[0], flush=True)
    for method in METHODS:
        for budget in (b for b in reversed(BUDGETS) if (method, b) not in done and not (args.quick and b > 15)):
            row, seconds = timed(lambda m=method, b=budget: row_of(m, b, dense, data, args))
            rows.append({"method": method, "budget": budget} | row | {"seconds": round(seconds, 1)})
            print(rows[-1], flush=True)
            if not args.quick:
                about = {"steps": args.steps, "batch": args.batch, "lr": args.lr, "dense_microjoules": whole_energy}
                record(f"energy_{args.network}", rows, out=args.out, **about)


if __name__ == "__main__":
    main()
