"""The smallest loss at which MiniLM runs six times as fast as its dense self: narrowed, then made sparse, and run by the engine.

    python -m benchmarks.engine_combined --weights FOLDER       # see benchmarks.coverage for the weights

Each row: channels leave (Fisher, one ranking by score per cost) until a share of the multiply-accumulates is left, the readers are refitted
(`repair=`), the network trains on the STS-B training set against the dense network's sentence vectors and people's scores; then single weights
of all linear layers of the encoder leave (`layer_obs`), and it trains on under its masks. The score is Spearman's correlation on every
third pair of the development set, times 100. Times are those of one sentence of 64 tokens, one thread, in turns, medians of the rounds' ratios: against the dense
network in ONNX Runtime (float32 and dynamic int8), OpenVINO and torch. The first row is the dense network after the same training.
"""

import copy
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from benchmarks.data import WEIGHTS
from benchmarks.engine_real import one_sentence, timed
from benchmarks.filters import networks
from benchmarks.models.cases import fetch
from benchmarks.record import options, record
from benchmarks.tables import table

ROWS = ((1.0, 0.0), (0.5, 0.0), (0.5, 0.9), (0.35, 0.0), (0.35, 0.8), (0.25, 0.0), (1.0, 0.9))
Lessons = list[tuple[Any, Tensor]]  # batches, and the sentence vectors of the dense network


def main() -> None:
    """Make all networks, then time all of them, then record."""
    parser = options(__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=100, help="of training after each cut (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    fetch(given.weights)
    network = networks.make("minilm", given.weights, effort="short")
    steps, rounds = (2, 2) if given.quick else (given.steps, given.rounds)
    thin, made = dict[float, nn.Module](), list[tuple[dict[str, Any], nn.Module]]()
    lessons = taught(network, steps)
    dense = network.judge(network.model)
    for share, sparsity in ROWS[-1:] if given.quick else ROWS:
        if share not in thin:
            thin[share] = narrowed(network, share, lessons)
        model = sparse(network, thin[share], sparsity, lessons)
        if model is network.model:  # what the same training alone does
            model = trained(model, lessons)
        row = {"share": share, "sparsity": sparsity, "score": network.judge(model), "dense score": dense}
        made.append((row, model))
        print(row, flush=True)
    print("timing", flush=True)
    rows = [
        row | times
        for (row, _), times in zip(
            made, timed(network.model, one_sentence(), [m for _, m in made], rounds), strict=True
        )
    ]
    print(*rows, sep="\n")
    if not given.quick:
        record("engine_combined", rows, out=given.out, rounds=given.rounds, steps=given.steps)


def narrowed(network: networks.Network, share: float, lessons: Lessons) -> nn.Module:
    """Channels leave, and what is left is trained."""
    if share == 1:
        return network.model
    task = sc.Task(list(network.calibration), loss=network.loss)
    how = {"granularity": "channel", "budget": f"macs:{100 * share:g}%", "repair": True}
    model = sc.prune(network.model, "fisher", task=task, example_inputs=network.example, **how).model
    return trained(model, lessons)


def sparse(network: networks.Network, model: nn.Module, sparsity: float, lessons: Lessons) -> nn.Module:
    """Single weights leave, and the rest is trained under the masks."""
    if not sparsity:
        return model
    task = sc.Task([{"tokens": batch[0], "mask": batch[1]} for batch in network.calibration])
    pruned = sc.prune(model, "layer_obs", sparsity=sparsity, task=task, ignore=["*embedding*"])
    return trained(pruned.model, lessons, pruned.masks)


def trained(model: nn.Module, lessons: Lessons, masks: sc.Masks | None = None) -> nn.Module:
    """A copy, trained to give the vectors of the dense network, and people's scores."""
    student, steps = copy.deepcopy(model).train(), len(lessons)
    optimizer = torch.optim.AdamW(student.parameters(), 2e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-4, total_steps=steps + 1, pct_start=0.1)
    held = sc.hold(student, masks, optimizer) if masks is not None else None
    for (tokens, mask, scores), wanted in lessons:
        found = student(tokens, mask)
        left, right = found.chunk(2)
        loss = 5 * (1 - F.cosine_similarity(found, wanted)).mean()
        optimizer.zero_grad(set_to_none=True)
        (loss + F.mse_loss(F.cosine_similarity(left, right), scores)).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if held:
        held.release()
    return student.eval()


@torch.no_grad()
def taught(network: networks.Network, steps: int) -> Lessons:
    """As many batches as asked for, seed after seed, with what the dense network makes of them: the same for every row."""
    found: Lessons = []
    seeds = count()
    while len(found) < steps:
        found += [(batch, network.model.eval()(*batch[:2])) for batch in network.training(next(seeds))]
    return found[:steps]


def section(found: dict[str, Any]) -> str:
    """The page's table."""
    rows = [
        [f"{r['share']:.0%}", f"{r['sparsity']:.0%}", f"{r['score']:.1f}", f"{r['dense score'] - r['score']:+.1f}"]
        + [f"{r[f'against {name}']:.2f}" for name in ("onnxruntime", "openvino", "onnxruntime int8", "torch")]
        + [f"{r['file MB']:.1f}"]
        for r in found["rows"]
    ]
    head = [
        "MACs",
        "zeros",
        "score",
        "loss",
        "× dense ONNX Runtime",
        "× dense OpenVINO",
        "× ONNX Runtime int8",
        "× dense torch",
        "file, MB",
    ]
    return f"## Narrow and sparse: MiniLM on STS-B\n\n{table(head, rows)}\n"


if __name__ == "__main__":
    main()
