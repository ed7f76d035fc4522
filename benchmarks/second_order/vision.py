"""LeNet-300-100, LeNet-5, an MLP and the ResNets of CIFAR-10. Test error for the LeNets as in their paper, accuracy for the others."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateur as sc
from benchmarks.anchor import load_mlp
from benchmarks.data import Split, load_cifar, load_mnist
from benchmarks.nets import load_lenet_300_100, load_resnet, make_lenet_5, make_mlp
from benchmarks.resnet import as_in_training
from benchmarks.second_order.cases import LAYERWISE, Bench, Case
from benchmarks.training import accuracy, each_batch, train, warped
from secateur.training.recalibration import recalibrate_

DENSE_TARGETS = LAYERWISE["split, dense targets"]


def on_labels(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def lenet(args: Any) -> Bench:
    """Of the authors of L-OBS: the budgets of their repository, 5/20/70 %, and 3/10/60 %."""
    data = load_mnist(args.data, mean=0.0, std=1.0)
    model = load_lenet_300_100(str(args.data / "models" / "lenet300_100_mnist.pt"))
    task = sc.Task(list(data.x_train[:10_000].split(1000)))

    def cases() -> Iterator[Case]:
        for keep in ((0.05, 0.2, 0.7), (0.03, 0.1, 0.6)):
            level = "/".join(f"{100 * share:g}" for share in keep) + " % kept"
            budget = {name: 1 - share for name, share in zip(("1", "3", "5"), keep, strict=True)}
            shared = {"sparsity": 0.5, "scope": "layer", "overrides": budget, "task": task}
            for name, how in LAYERWISE.items():
                if "scope" not in how:
                    yield level, name, partial(sc.prune, model, "layer_obs", **shared, **how)
        yield from found_budgets(model, task)
        yield from retrained(model, data, (0.95, 0.965, 0.975, 0.98, 0.985), (80, 80, 80, 100, 300), seeds=3)

    return model, (lambda m: 100 - accuracy(m, data.x_test, data.y_test)), cases()


def lenet_5(args: Any) -> Bench:
    """Trained here for 6 epochs; layer budgets found from errors."""
    data = load_mnist(args.data, mean=0.0, std=1.0)
    torch.manual_seed(0)
    model = train(make_lenet_5(), data, epochs=6, seed=0)
    task = sc.Task(list(data.x_train[:10_000].split(1000)))

    def cases() -> Iterator[Case]:
        yield from found_budgets(model, task)
        yield from retrained(model, data, (0.95, 0.97, 0.98, 0.986, 0.991), (100, 100, 100, 140, 400), images=500)

    return model, (lambda m: 100 - accuracy(m, data.x_test, data.y_test)), cases()


def found_budgets(model: nn.Module, task: sc.Task) -> Iterator[Case]:
    """7 % kept in all."""
    yield "7 % kept", "magnitude, global", partial(sc.prune, model, "magnitude", sparsity=0.93)
    yield "7 % kept", "magnitude, LAMP", partial(sc.prune, model, "magnitude", sparsity=0.93, scope="lamp")
    for name in ("SparseGPT", "split", "split, dense targets"):
        yield "7 % kept", name, partial(sc.prune, model, "layer_obs", sparsity=0.93, task=task, **LAYERWISE[name])


def retrained(
    model: nn.Module,
    data: Split,
    sparsities: tuple[float, ...],
    steps: tuple[int, ...],
    *,
    images: int = 1000,
    seeds: int = 1,
) -> Iterator[Case]:
    """Steps of training after every cut, each on so many images; labels weigh the errors of layers too. Seeds order and warp the images."""
    last = f"{100 - 100 * sparsities[-1]:.1f} % kept, {sum(steps)} steps"
    batches = list(zip(data.x_train[:10_000].split(1000), data.y_train[:10_000].split(1000), strict=True))
    task = sc.Task(batches, loss=on_labels)
    magnitude = partial(sc.prune, method="magnitude", scope="lamp")
    split = partial(sc.prune, method="layer_obs", task=task, **DENSE_TARGETS)

    def work(cut: Callable[..., sc.Pruned], seed: int) -> sc.Pruned:
        pruned, batches = None, each_batch(data, 99, images, torch.Generator().manual_seed(seed))
        for sparsity, count in zip(sparsities, steps, strict=True):
            pruned = cut(pruned.model if pruned else model, sparsity=sparsity)
            tuned(pruned, model, itertools.islice(batches, count), count, seed=seed)
        assert pruned
        return pruned

    for name, cut in (("magnitude, LAMP", magnitude), ("split, dense targets", split)):
        for seed in range(seeds):
            yield last, f"{name}, seed {seed}" if seeds > 1 else name, partial(work, cut, seed)


def tuned(
    pruned: sc.Pruned, dense: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int, *, seed: int
) -> None:
    """Adam with a little weight decay, the rate falling as a cosine, the dense network as a teacher; zeros are held.

    What is left learns its pictures by heart, so they are warped; weights are averaged over the last steps. Rates and decay were
    chosen on 10,000 training images that were left out of retraining; averages and dense targets on a network that never saw these, where they
    helped by no more than the noise between seeds.
    """
    optimizer = torch.optim.AdamW(pruned.model.parameters(), lr=2e-2, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    loss = sc.distillation(dense, on_labels, temperature=4.0, weight=0.9)
    generator = torch.Generator().manual_seed(5 + seed)
    averaged = AveragedModel(pruned.model, multi_avg_fn=get_ema_multi_avg_fn(0.97))
    pruned.model.train()
    with sc.hold(pruned.model, pruned.masks, optimizer):
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            loss(pruned.model, (warped(x, generator), y)).backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(pruned.model)
    pruned.model.load_state_dict(averaged.module.state_dict())
    pruned.model.eval()


def mlp(args: Any) -> Bench:
    """784-40-20-10, one-shot at .9, .95, .98: 1,000 labelled images for the network's curvature, 5,000 unlabelled ones layer by layer."""
    data = load_mnist(args.data)
    torch.manual_seed(0)
    model = load_mlp(args.checkpoint) if args.checkpoint else train(make_mlp(), data, epochs=3, seed=0)
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))
    few, many = order[:1000], order[:5000]

    small = sc.Task(list(zip(data.x_train[few].split(250), data.y_train[few].split(250), strict=True)), loss=on_labels)
    plain = sc.Task(list(data.x_train[many].split(500)))

    def cases() -> Iterator[Case]:
        for s in (0.9, 0.95, 0.98):
            yield f"{100 * s:g} %", "magnitude", partial(sc.prune, model, "magnitude", sparsity=s)
            yield f"{100 * s:g} %", "random", partial(sc.prune, model, "random", sparsity=s)
            obd = partial(sc.prune, model, "obd", sparsity=s, task=small, diagonal="empirical")
            yield f"{100 * s:g} %", "OBD, empirical", obd
            for name, solver, stages, damping in (
                ("blocks", "blocks", 1, 1e-5),
                ("joint", "joint", 1, 1e-5),
                ("search", "search", 1, 1e-5),
                ("search, 8 stages", "search", 8, 1e-4),
            ):
                how = {"solver": solver, "stages": stages, "damping": damping}
                fisher = partial(sc.prune, model, "block_fisher", sparsity=s, task=small, **how)
                yield f"{100 * s:g} %", f"Fisher, {name}", fisher
            for scope in ("global", "layer"):
                how = DENSE_TARGETS | {"scope": scope}
                layerwise = partial(sc.prune, model, "layer_obs", sparsity=s, task=plain, **how)
                yield f"{100 * s:g} %", f"layer-wise, {scope}", layerwise

    return model, (lambda m: accuracy(m, data.x_test, data.y_test)), cases()


def resnet(depth: int, args: Any) -> Bench:
    """Convolutions inside the blocks; batch norms refreshed on images prepared as in training, for every row."""
    data = load_cifar(args.data)
    model = load_resnet(str(args.data / "models" / f"resnet{depth}_cifar10.pt"), (depth - 2) // 6)
    fresh = as_in_training(data.x_train[:2000])
    task = sc.Task(list(as_in_training(data.x_train[:1000], seed=1).split(250)))

    def judge(m: nn.Module) -> float:
        recalibrate_(m, fresh.split(250))
        return accuracy(m, data.x_test, data.y_test)

    def cases() -> Iterator[Case]:
        for s in (0.5, 0.6, 0.7, 0.8, 0.9):
            shared = {"sparsity": s, "ignore": ["conv1", "linear"]}
            yield f"{100 * s:g} %", "magnitude, global", partial(sc.prune, model, "magnitude", **shared)
            for scope in ("layer", "global"):
                for name in ("SparseGPT", "split", "split, dense targets"):
                    how = shared | LAYERWISE[name] | {"scope": scope, "norms": False}
                    yield f"{100 * s:g} %", f"{name}, {scope}", partial(sc.prune, model, "layer_obs", task=task, **how)

    return model, judge, cases()
