"""The networks, their data, how they are judged, and a short training that is the same for every row."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from benchmarks.data import DATA, load_cifar
from benchmarks.models.cases import CASES, _encoded, _spearman, imagenet, minilm_tokenizer
from benchmarks.nets import load_resnet
from benchmarks.resnet import as_in_training
from benchmarks.training import accuracy

Batches = Sequence[Any]


@dataclass(frozen=True)
class Network:
    """One network with what a row needs.

    Args:
        model: trained.
        example: the inputs that it is coupled and counted on.
        loss: of a model on a batch.
        calibration: batches for criteria, repair and batch-norm statistics.
        judge: the score, higher is better, per cent.
        training: batches of one short training, from a seed.
        lr: its learning rate.
        head: the layer that peers must leave alone, with those that match ``held``: globs of layers whose widths they cannot change here
            (shortcuts that pad with zeros, attention written by hand); narrower layers inside blocks are what they find.
        shares: the budgets; the training is at the last one.
        frozen: batch-norm statistics stay as they are in training: there are too few images for new ones.
    """

    model: nn.Module
    example: Any
    loss: Callable[[nn.Module, Any], Tensor]
    calibration: Batches
    judge: Callable[[nn.Module], float]
    training: Callable[[int], Iterator[Any]]
    lr: float
    head: str
    shares: tuple[float, float] = (0.65, 0.5)
    frozen: bool = False
    held: tuple[str, ...] = ()


@dataclass(frozen=True)
class Effort:
    """How long the short training of a network is, and how much is judged.

    Args:
        steps: of training.
        batch: examples a step.
        every: of how many examples one is judged (STS-B).
    """

    steps: int
    batch: int
    every: int = 1


EFFORTS = {
    "whole": {
        "resnet20": Effort(31, 128),
        "resnet56": Effort(31, 128),
        "efficientnet_lite0": Effort(30, 16),
        "minilm": Effort(40, 32),
    },
    "short": {
        "resnet20": Effort(16, 128),
        "resnet56": Effort(10, 128),
        "efficientnet_lite0": Effort(12, 8),
        "minilm": Effort(20, 16, every=3),
    },
    "quick": {
        "resnet20": Effort(6, 128),
        "resnet56": Effort(6, 128),
        "efficientnet_lite0": Effort(2, 16),
        "minilm": Effort(2, 32),
    },
}


def resnet(depth: int, effort: Effort) -> Network:
    """CIFAR-10: scores on 1,000 lossless test images, training on 4,000 lossless training images."""
    data = load_cifar()
    model = load_resnet(str(DATA / "models" / f"resnet{depth}_cifar10.pt"), (depth - 2) // 6)
    x, y = data.x_train, data.y_train

    def training(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        seen = as_in_training(x, seed)
        for _ in range(effort.steps):
            chosen = torch.randint(0, len(x), (effort.batch,), generator=generator)
            yield seen[chosen], y[chosen]

    calibration = list(zip(as_in_training(x[:512]).split(64), y[:512].split(64), strict=True))
    return Network(
        model,
        torch.zeros(1, 3, 32, 32),
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        calibration,
        lambda m: accuracy(m, data.x_test, data.y_test, batch=100),
        training,
        0.02,
        "linear",
        held=("conv1", "layer*.conv2"),
    )


def efficientnet_lite0(weights: Path, effort: Effort) -> Network:
    """The ImageNet sample: one image a class, so 250 classes are seen and the score is of the 250 others.

    Training by distillation, without labels: cross-entropy on half of the classes would unlearn the other half.
    """
    model = CASES["efficientnet_lite0"].load(weights)
    x, y = imagenet()
    teach = sc.distillation(copy.deepcopy(model), temperature=1.0, weight=1.0)

    def training(seed: int) -> Iterator[tuple[Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(effort.steps):
            chosen = torch.randint(0, 250, (effort.batch,), generator=generator)
            flipped = x[chosen].flip(3) if torch.rand((), generator=generator) < 0.5 else x[chosen]
            yield (flipped,)

    return Network(
        model,
        torch.zeros(1, 3, 224, 224),
        lambda m, b: F.cross_entropy(m(b[0]), b[1]) if len(b) > 1 else teach(m, b),
        list(zip(x[:64].split(16), y[:64].split(16), strict=True)),
        lambda m: accuracy(m, x[250:], y[250:], batch=25),
        training,
        0.01,
        "_fc",
        shares=(0.9, 0.8),  # at half, random channels, L1 and filter norms leave nothing
        frozen=True,
    )


def minilm(weights: Path, effort: Effort) -> Network:
    """STS-B: Spearman's correlation of the cosine with people's scores on the development set, times 100."""
    model = CASES["minilm_l6"].load(weights)
    tokenizer = minilm_tokenizer(weights)
    rows = [line.split("\t") for line in (DATA / "stsb" / "sts-train.csv").read_text(encoding="utf-8").splitlines()]
    lines = (DATA / "stsb" / "sts-dev.csv").read_text(encoding="utf-8").splitlines()
    judged = [line.split("\t") for line in lines[:: effort.every]]
    wanted = torch.tensor([float(row[4]) for row in judged])

    def batch(chosen: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        texts = [rows[k][5] for k in chosen] + [rows[k][6] for k in chosen]
        found = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        return found["input_ids"], found["attention_mask"], torch.tensor([float(rows[k][4]) / 5 for k in chosen])

    def loss(m: nn.Module, b: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        left, right = m(b[0], b[1]).chunk(2)
        return F.mse_loss(F.cosine_similarity(left, right), b[2])

    def judge(m: nn.Module) -> float:
        m.eval()
        left, right = (_encoded(m, tokenizer, [row[k] for row in judged]) for k in (5, 6))
        return 100 * _spearman(F.cosine_similarity(left, right), wanted)

    def training(seed: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(effort.steps):
            yield batch(torch.randint(0, len(rows), (effort.batch,), generator=generator).tolist())

    generator = torch.Generator().manual_seed(
        0
    )  # at random: the file is sorted by genre, and the first rows are captions of videos
    calibration = [batch(chosen.tolist()) for chosen in torch.randperm(len(rows), generator=generator)[:128].split(16)]
    example = tuple(t[:2] for t in calibration[0][:2])
    held = ("*.attention.*", "*.output.dense")
    return Network(model, example, loss, calibration, judge, training, 1e-4, "", held=held)


def make(name: str, weights: Path, *, effort: str) -> Network:
    """A network by name; ``effort``: "whole", "short" (an hour and a half for the whole table on two cores) or "quick" (to see that it works)."""
    own = EFFORTS[effort][name]
    if name.startswith("resnet"):
        return resnet(int(name[6:]), own)
    return efficientnet_lite0(weights, own) if name == "efficientnet_lite0" else minilm(weights, own)
