"""Trained networks, pruned, through the engine: how far from torch, how fast against dense torch and ONNX Runtime, how large.

    python -m benchmarks.engine_real --weights FOLDER       # see benchmarks.coverage for the weights

Pruned in one shot by magnitude, the same sparsity in every layer, without training afterwards: what is measured here is the engine, not
the pruning. The score of ResNet-56 and of EfficientNet-Lite0 is taken through the engine, after batch-norm recalibration. One thread,
batch 1, in turns, medians of the rounds' ratios.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import secateur as sc
from benchmarks.data import WEIGHTS, load_cifar
from benchmarks.models.cases import CASES, imagenet
from benchmarks.record import options, record
from benchmarks.turns import rounds_in_turns

NETS = {
    "resnet56": 0.7,
    "efficientnet_lite0": 0.5,
    "minilm_l6": 0.8,
    "cyclegan": 0.7,
    "silero_vad": 0.8,
    "mtcnn_onet": 0.8,
}


def main() -> None:
    """Run and record."""
    parser = options(__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in given.nets:
        for sparsity in (0.0, NETS[name], 0.9):
            rows.append(
                {
                    "net": name,
                    "sparsity": sparsity,
                    **measured(name, sparsity, given.weights, 2 if given.quick else given.rounds),
                }
            )
            print(rows[-1], flush=True)
            if not given.quick:
                record("engine_real", rows, out=given.out, rounds=given.rounds)


def measured(name: str, sparsity: float, weights: Path, rounds: int) -> dict[str, Any]:
    """One network at one sparsity."""
    dense, example = CASES[name].load(weights), CASES[name].example(0)
    model = dense
    if sparsity:
        model = sc.prune(dense, "magnitude", sparsity=sparsity, scope="layer").model
        calibrate_(name, model)
    fast = sc.compile(model, example, threads=1)
    with torch.inference_mode():
        expected, found = tree_leaves(model(*example)), tree_leaves(fast(*example))
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
        ratio = against(lambda: fast(*example), lambda: dense(*example), rounds)
    with tempfile.TemporaryDirectory() as folder:
        fast.save(Path(folder) / "model.sc")
        size = (Path(folder) / "model.sc").stat().st_size
    notes = fast.report(seconds=0, dense=False).notes
    return {
        "difference": difference,
        "against dense torch": ratio,
        "file MB": size / 1e6,
        "in torch": list(notes),
        **scored(name, model),
    }


def against(ours: Any, theirs: Any, rounds: int) -> float:
    """The median of the rounds' ratios of times."""
    samples = rounds_in_turns({"ours": ours, "theirs": theirs}, rounds, 3)
    return statistics.median(b / a for a, b in zip(samples["ours"], samples["theirs"], strict=True))


def calibrate_(name: str, model: nn.Module) -> None:
    """New batch-norm statistics, where there are batch norms."""
    if name == "resnet56":
        sc.recalibrate_(model, load_cifar().x_train[:1000].split(100))
    if name == "efficientnet_lite0":
        sc.recalibrate_(model, imagenet(200)[0].split(20))


def scored(name: str, model: nn.Module) -> dict[str, float]:
    """Top-1 accuracy in per cent, by the compiled model."""
    if name == "resnet56":
        data = load_cifar()
        images, labels, size = data.x_test, data.y_test, 100
    elif name == "efficientnet_lite0":
        images, labels = imagenet(200)
        size = 20
    else:
        return {}
    fast = sc.compile(model, images[:size], threads=1)
    right: list[Tensor] = [
        fast(part).argmax(1) == truth for part, truth in zip(images.split(size), labels.split(size), strict=True)
    ]
    return {"top-1": 100 * float(torch.cat(right).float().mean())}


if __name__ == "__main__":
    main()
