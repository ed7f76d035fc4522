"""ResNet-20 and ResNet-56 on CIFAR-10: one-shot rows without any training, before and after batch-norm recalibration.

The pretrained networks of ``shared/data/models`` are measured on 1,000 lossless test images, so one image is 0.1 points and the
standard error near 90 % is about 0.9 points. Batch-norm statistics are recalibrated on lossless training images, without labels,
prepared as in training: cropped from a black frame of 4 pixels and mirrored at random. That matters more than pruning does at
30 %: on plain images (column ``recalibrated_plain``) the DENSE ResNet-20 loses 3 points. What is prunable: ``conv`` = all 3x3 convolutions (the first one too, the classifier stays dense); ``blocks`` = only those
inside residual blocks (as in the WoodFisher and CHITA scripts); ``all`` = convolutions and classifier. Random rows are one seed.

    python -m benchmarks.resnet --depth 20
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from benchmarks.data import Split, load_cifar
from benchmarks.nets import load_resnet
from benchmarks.record import options, record
from benchmarks.training import accuracy

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
IGNORED = {"conv": ["linear"], "blocks": ["conv1", "linear"], "all": []}
CASES = (
    ("magnitude", "global", "conv"),
    ("magnitude", "erk", "conv"),
    ("magnitude", "layer", "conv"),
    ("magnitude", "lamp", "conv"),
    ("random", "erk", "conv"),
    ("magnitude", "global", "all"),
    ("magnitude", "erk", "all"),
    ("magnitude", "global", "blocks"),
)


def as_in_training(images: Tensor, seed: int = 0) -> Tensor:
    """Random crops out of a black frame of 4 pixels, mirrored with probability one half."""
    generator = torch.Generator().manual_seed(seed)
    black = images.amin((0, 2, 3), keepdim=True)  # value 0 after normalisation; every channel has black pixels
    framed = F.pad(images - black, (4, 4, 4, 4)) + black
    shifts = torch.randint(0, 9, (len(images), 2), generator=generator).tolist()
    crops = torch.stack([image[:, y : y + 32, x : x + 32] for image, (y, x) in zip(framed, shifts, strict=True)])
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(3), crops)


class Judge:
    """Measures a network with its old batch-norm statistics and with new ones."""

    def __init__(self, data: Split, calibration: int) -> None:
        self.data = data
        self.plain = data.x_train[:calibration].split(100)
        self.prepared = as_in_training(data.x_train[:calibration]).split(100)

    def scores(self, model: nn.Module, *, plain: bool) -> dict[str, float]:
        """Accuracy before and after recalibration; on plain images too if asked for."""
        found = {"accuracy": self._accuracy(model), "recalibrated": self._accuracy(self._fresh(model, self.prepared))}
        return found | ({"recalibrated_plain": self._accuracy(self._fresh(model, self.plain))} if plain else {})

    def _accuracy(self, model: nn.Module) -> float:
        return accuracy(model, self.data.x_test, self.data.y_test, batch=100)

    @staticmethod
    def _fresh(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
        copied = copy.deepcopy(model)
        sc.recalibrate_(copied, batches)
        return copied


def rows_of(model: nn.Module, judge: Judge, cases: Sequence[tuple[str, str, str]]) -> Iterator[dict[str, Any]]:
    """The dense row, then every case at every sparsity."""
    yield {"criterion": "", "scope": "dense", "prunable": "", "sparsity": 0.0} | judge.scores(model, plain=True)
    for case in cases:
        criterion, scope, prunable = case
        for sparsity in SPARSITIES:
            pruned = sc.prune(model, criterion, sparsity=sparsity, scope=scope, ignore=IGNORED[prunable])
            what = {"criterion": criterion, "scope": scope, "prunable": prunable, "sparsity": sparsity}
            counts = {"kept": pruned.masks.kept, "weights": pruned.masks.total}
            yield what | counts | judge.scores(pruned.model, plain=case == CASES[0])


def parse() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--depth", type=int, choices=(20, 56), default=20)
    parser.add_argument("--calibration", type=int, default=2000, help="training images for batch-norm statistics")
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many of the cases, in their order")
    return parser.parse_args()


def main() -> None:
    """Measure one network and write ``results/resnet<depth>.json``."""
    args, rows = parse(), []
    data = load_cifar(args.data)
    model = load_resnet(str(Path(args.data) / "models" / f"resnet{args.depth}_cifar10.pt"), (args.depth - 2) // 6)
    calibration = 200 if args.quick else args.calibration
    for row in rows_of(model, Judge(data, calibration), CASES[: 1 if args.quick else args.cases]):
        rows.append({"network": f"resnet{args.depth}"} | row)
        print(*rows[-1].values(), flush=True)
        if not args.quick:
            record(
                f"resnet{args.depth}", rows, out=args.out, calibration_images=calibration, test_images=len(data.x_test)
            )


if __name__ == "__main__":
    main()
