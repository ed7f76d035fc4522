"""Trained networks, pruned, through the engine: score, file and time together, and how far from torch.

    python -m benchmarks.engine_real --weights FOLDER       # see benchmarks.coverage for the weights

Pruned in one shot by layer-wise OBS, without training afterwards (ResNet-56 and EfficientNet-Lite0 get new batch-norm statistics), each at
two sparsities; a network that is trained again loses less. Scores are of the compiled model for images and for text of one length
(SmolLM2), and of torch for the sentences of MiniLM, whose lengths differ; `difference` says how far the compiled model is from torch on
the input that is timed: one image, one sentence of 64 tokens. All networks are pruned first and timed afterwards, in turns, on one thread:
the engine, dense ONNX Runtime (float32 and int8), dense OpenVINO and dense torch; medians of the rounds' ratios.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks.data import WEIGHTS
from benchmarks.engine import exported, with_onnxruntime, with_openvino
from benchmarks.filters import networks
from benchmarks.models.cases import fetch
from benchmarks.record import options, record
from benchmarks.second_order.cases import LAYERWISE
from benchmarks.second_order.language import perplexity, smollm
from benchmarks.second_order.vision import resnet
from benchmarks.turns import rounds_in_turns

OTHERS = ("onnxruntime", "onnxruntime int8", "openvino", "torch")
Judge = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Real:
    """A dense network, what is timed, its score (of a pruned module), and how it is pruned to a sparsity."""

    dense: nn.Module
    timed: tuple[Tensor, ...]
    judge: Judge
    prune: Callable[[float], nn.Module]
    sparsities: tuple[float, float]
    unit: str


def by_engine(batch: Tensor, judge: Callable[[Any], float]) -> Judge:
    """A score of the compiled model."""
    return lambda model: judge(sc.compile(model, batch, threads=1))


def resnet56(args: Any) -> Real:
    """CIFAR-10, 1,000 test images."""
    dense, judge, _ = resnet(56, args)
    network = networks.make("resnet56", args.weights, effort="quick")
    task = sc.Task([x for x, _ in network.calibration])
    how = LAYERWISE["split, dense targets"] | {"norms": False, "ignore": ["conv1", "linear"], "task": task}

    def prune(sparsity: float) -> nn.Module:
        model = sc.prune(dense, "layer_obs", sparsity=sparsity, **how).model
        judge(model)  # which refreshes the batch norms
        return model

    images, labels = networks.load_cifar(args.data).x_test, networks.load_cifar(args.data).y_test
    score = by_engine(images[:100], lambda fast: right(fast, images, labels, 100))
    return Real(dense, (images[:1],), score, prune, (0.7, 0.8), "% right")


def efficientnet_lite0(args: Any) -> Real:
    """The 250 images of the ImageNet sample that calibration does not see."""
    network = networks.make("efficientnet_lite0", args.weights, effort="quick")
    images, labels = networks.imagenet()
    task = sc.Task(list(images[:128].split(16)))

    def prune(sparsity: float) -> nn.Module:
        pruned = sc.prune(network.model, "layer_obs", sparsity=sparsity, task=task, ignore=["_fc", "_conv_stem"])
        sc.recalibrate_(pruned.model, list(images[:250].split(25)))
        return pruned.model

    score = by_engine(images[:25], lambda fast: right(fast, images[250:], labels[250:], 25))
    return Real(network.model, (images[:1],), score, prune, (0.5, 0.7), "% right")


def minilm(args: Any) -> Real:
    """STS-B."""
    network = networks.make("minilm", args.weights, effort="quick")
    task = sc.Task([{"tokens": batch[0], "mask": batch[1]} for batch in network.calibration])
    how = LAYERWISE["split, dense targets"] | {"task": task, "norms": False}

    def prune(sparsity: float) -> nn.Module:
        return sc.prune(network.model, "layer_obs", sparsity=sparsity, ignore=["*embedding*"], **how).model

    return Real(network.model, one_sentence(), network.judge, prune, (0.5, 0.7), "Spearman")


def smollm2(args: Any) -> Real:
    """WikiText-2: perplexity of 16 windows of 512 tokens; lower is better."""
    dense, judge, _ = smollm(args)
    windows = judge.keywords["windows"]
    given = smollm_task(args)

    def prune(sparsity: float) -> nn.Module:
        how = LAYERWISE["SparseGPT"] | {"task": given, "norms": False, "ignore": ["head", "embedding"]}
        return sc.prune(dense, "layer_obs", sparsity=sparsity, **how).model

    score = by_engine(windows[0][None], partial(perplexity, windows=windows))
    return Real(dense, (windows[0][None, :64],), score, prune, (0.5, 0.7), "perplexity")


def smollm_task(args: Any) -> sc.Task:
    """Sixteen windows of the first half of the text."""
    import numpy as np

    file = np.load(args.data / "text" / "wikitext2_valid_smollm2_tokens.npz")
    windows = torch.from_numpy(file["tokens"].astype(np.int64))
    windows = windows[: len(windows) // 512 * 512].view(-1, 512)
    return sc.Task([window.unsqueeze(0) for window in windows[: len(windows) // 2 : len(windows) // 32][:16]])


NETS: dict[str, Callable[[Any], Real]] = {
    "ResNet-56": resnet56,
    "EfficientNet-Lite0": efficientnet_lite0,
    "MiniLM": minilm,
    "SmolLM2-135M": smollm2,
}


def main() -> None:
    """Prune all, then time all, then record."""
    parser = options(__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    given = parser.parse_args()
    given.folder = None
    torch.set_num_threads(1)
    fetch(given.weights)
    made = []
    for name in given.nets:
        real = NETS[name](given)
        made.append((name, real, list(scored(real, given.quick))))
        print(name, [row for row, _ in made[-1][2]], flush=True)
    print("timing", flush=True)
    rows = []
    for name, real, models in made:
        times = timed(real.dense, real.timed, [m for _, m in models], 2 if given.quick else given.rounds)
        for (row, _), found in zip(models, times, strict=True):
            rows.append({"net": name, "unit": real.unit, **row, **found})
            print(rows[-1], flush=True)
        if not given.quick:
            record("engine_real", rows, out=given.out, rounds=given.rounds)


@torch.no_grad()
def scored(real: Real, quick: bool) -> Iterator[tuple[dict[str, Any], nn.Module]]:
    """The dense network and the pruned ones, with their scores."""
    for sparsity in (0.0, *real.sparsities[: 1 if quick else 2]):
        model = real.prune(sparsity) if sparsity else real.dense
        yield {"sparsity": sparsity, "score": real.judge(model.eval())}, model


def right(fast: Any, images: Tensor, labels: Tensor, size: int) -> float:
    """Per cent."""
    found = torch.cat([fast(part).argmax(1) for part in images.split(size)])
    return 100 * float((found == labels).float().mean())


def timed(
    dense: nn.Module, inputs: tuple[Tensor, ...], models: list[nn.Module], rounds: int
) -> Iterator[dict[str, Any]]:
    """For each model how many times as fast as the dense network in other engines, how far from torch, how large its file."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        calls = dense_calls(dense, inputs, Path(folder))
        compiled = [sc.compile(model, inputs, threads=1) for model in models]
        fed = [t.numpy() for t in inputs]
        calls |= {f"ours {k}": partial(fast, *fed) for k, fast in enumerate(compiled)}
        samples = rounds_in_turns(calls, rounds, 3)
        for k, (model, fast) in enumerate(zip(models, compiled, strict=True)):
            expected, found = model(*inputs), fast(*inputs)
            fast.save(path := Path(folder) / "model.sc")
            row = {
                "difference": float((found - expected).abs().max() / expected.abs().max()),
                "file MB": path.stat().st_size / 1e6,
                "dense file MB": (Path(folder) / "dense.onnx").stat().st_size / 1e6,
                "ms": 1e3 * statistics.median(samples[f"ours {k}"]),
                "in torch": list(fast.report(seconds=0, dense=False).notes),
            }
            for name in OTHERS:
                pairs = zip(samples[f"ours {k}"], samples[name], strict=True)
                row[f"against {name}"] = statistics.median(b / a for a, b in pairs)
            yield row | {"against the better": min(row["against onnxruntime"], row["against openvino"])}


def one_sentence(tokens: int = 64) -> tuple[Tensor, Tensor]:
    """Random words, none of them padding."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1000, 30000, (1, tokens), generator=generator), torch.ones(1, tokens, dtype=torch.long)


def dense_calls(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> dict[str, Any]:
    """The dense network in torch, ONNX Runtime and OpenVINO, one thread each; its file is ``dense.onnx``."""
    given = exported(model, inputs, path := folder / "dense.onnx")
    return {
        "torch": lambda: model(*inputs),
        "onnxruntime": with_onnxruntime(path, given, 1),
        "onnxruntime int8": with_onnxruntime(path, given, 1, int8=True),
        "openvino": with_openvino(path, given, 1),
    }


if __name__ == "__main__":
    main()
