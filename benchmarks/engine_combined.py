"""The smallest loss at which MiniLM runs six times as fast as its dense self: narrowed, then made sparse, and run by the engine.

    python -m benchmarks.engine_combined --weights FOLDER       # see benchmarks.coverage for the weights

Each row: channels leave (Fisher, one ranking by score per cost) until a share of the multiply-accumulates is left, the readers are refitted
(`repair=`), the network trains on the STS-B training set against the dense network's sentence vectors and people's scores; then single weights
of all linear layers of the encoder leave (`layer_obs`), and it trains on under its masks. The score is Spearman's correlation on the
development set, times 100. Times are those of one sentence of 64 tokens, one thread, in turns, medians of the rounds' ratios: against the dense
network in ONNX Runtime (float32 and dynamic int8) and in torch.
"""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from benchmarks.data import WEIGHTS
from benchmarks.engine import quantised
from benchmarks.filters import networks
from benchmarks.models.cases import fetch
from benchmarks.record import options, record
from benchmarks.tables import about, table
from benchmarks.turns import rounds_in_turns

ROWS = ((1.0, 0.0), (1.0, 0.8), (1.0, 0.9), (0.5, 0.0), (0.5, 0.7), (0.5, 0.8), (0.35, 0.0), (0.35, 0.7), (0.35, 0.8))
TOKENS = 64


def main() -> None:
    """Run and record."""
    parser = options(__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200, help="of training after each cut (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    fetch(given.weights)
    network = networks.make("minilm", given.weights, effort="whole")
    steps, rounds = (2, 2) if given.quick else (given.steps, given.rounds)
    rows, thin = [], dict[float, nn.Module]()
    dense = network.judge(network.model)
    with tempfile.TemporaryDirectory() as folder:
        others = dense_calls(network.model, Path(folder))
        for share, sparsity in ROWS[-1:] if given.quick else ROWS:
            if share not in thin:
                thin[share] = narrowed(network, share, steps)
            model = sparse(network, thin[share], sparsity, steps)
            row = {"share": share, "sparsity": sparsity, "score": network.judge(model), "dense score": dense}
            rows.append(row | timed(model, others, rounds, Path(folder)))
            print(rows[-1], flush=True)
            if not given.quick:
                record("engine_combined", rows, out=given.out, rounds=given.rounds, steps=given.steps)


def narrowed(network: networks.Network, share: float, steps: int) -> nn.Module:
    """Channels leave, and what is left is trained."""
    if share == 1:
        return network.model
    task = sc.Task(list(network.calibration), loss=network.loss)
    how = {"granularity": "channel", "budget": f"macs:{100 * share:g}%", "repair": True}
    model = sc.prune(network.model, "fisher", task=task, example_inputs=network.example, **how).model
    return trained(network, model, steps)


def sparse(network: networks.Network, model: nn.Module, sparsity: float, steps: int) -> nn.Module:
    """Single weights leave, and the rest is trained under the masks."""
    if not sparsity:
        return model
    task = sc.Task([{"tokens": batch[0], "mask": batch[1]} for batch in network.calibration])
    pruned = sc.prune(model, "layer_obs", sparsity=sparsity, task=task, ignore=["*embedding*"])
    return trained(network, pruned.model, steps, pruned.masks)


def trained(network: networks.Network, model: nn.Module, steps: int, masks: sc.Masks | None = None) -> nn.Module:
    """A copy, trained to give the vectors of the dense network, and people's scores."""
    student, teacher = copy.deepcopy(model).train(), network.model.eval()
    optimizer = torch.optim.AdamW(student.parameters(), 2e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-4, total_steps=steps + 1, pct_start=0.1)
    held = sc.hold(student, masks, optimizer) if masks is not None else None
    for batch in batches(network, steps):
        with torch.no_grad():
            wanted = teacher(*batch[:2])
        found = student(*batch[:2])
        left, right = found.chunk(2)
        loss = 5 * (1 - F.cosine_similarity(found, wanted)).mean()
        optimizer.zero_grad(set_to_none=True)
        (loss + F.mse_loss(F.cosine_similarity(left, right), batch[2])).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if held:
        held.release()
    return student.eval()


def batches(network: networks.Network, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """As many as asked for, seed after seed."""
    seed = 0
    while steps > 0:
        for batch in network.training(seed):
            if steps > 0:
                yield batch
            steps -= 1
        seed += 1


def one_sentence() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1000, 30000, (1, TOKENS), generator=generator), torch.ones(1, TOKENS, dtype=torch.long)


def dense_calls(model: nn.Module, folder: Path) -> dict[str, Any]:
    """The dense network in torch and ONNX Runtime."""
    import onnxruntime

    inputs, path = one_sentence(), folder / "dense.onnx"
    names = ["ids", "mask"]
    torch.onnx.export(model, inputs, path, input_names=names, dynamo=True, external_data=False, verbose=False)
    fed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    calls: dict[str, Any] = {"torch": lambda: model(*inputs)}
    for name, file in (("onnxruntime", path), ("onnxruntime int8", quantised(path, torch.zeros(1, 1, 1).numpy()))):
        session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
        calls[name] = lambda session=session: session.run(None, fed)
    return calls


def timed(model: nn.Module, others: dict[str, Any], rounds: int, folder: Path) -> dict[str, float]:
    """How many times as fast as each of the others; how far from torch; the size of the file."""
    inputs = one_sentence()
    fast = sc.compile(model, inputs, threads=1)
    with torch.inference_mode():
        expected = model(*inputs)
        difference = float((fast(*inputs) - expected).abs().max() / expected.abs().max())
        samples = rounds_in_turns({"ours": lambda: fast(*inputs)} | others, rounds, 3)
    fast.save(folder / "model.sc")
    found = {"difference": difference, "file MB": (folder / "model.sc").stat().st_size / 1e6}
    for name in others:
        ratios = sorted(b / a for a, b in zip(samples["ours"], samples[name], strict=True))
        found[f"against {name}"] = ratios[len(ratios) // 2]
    return found


def section(found: dict[str, Any]) -> str:
    """The page's table."""
    rows = [
        [f"{r['share']:.0%}", f"{r['sparsity']:.0%}", f"{r['score']:.1f}", f"{r['dense score'] - r['score']:+.1f}"]
        + [f"{r[f'against {name}']:.2f}" for name in ("onnxruntime", "onnxruntime int8", "torch")]
        + [f"{r['file MB']:.1f}"]
        for r in found["rows"]
    ]
    head = ["MACs", "zeros", "score", "loss", "× dense ONNX Runtime", "× its int8", "× dense torch", "file, MB"]
    return f"## Narrow and sparse: MiniLM on STS-B\n\n{table(head, rows)}\n\n{about(found)}"


if __name__ == "__main__":
    main()
