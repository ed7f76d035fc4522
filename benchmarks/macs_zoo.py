"""Our multiply-accumulates beside torch's own counter, on every torchvision classifier and on models where that counter is blind.

    python -m benchmarks.macs_zoo          # needs torchvision and transformers

Each classifier is counted twice by each side: on the meta device, and (up to 100 M parameters) in a real run on the CPU. Torch's
counter is run as it is, and again with fused attention taken apart (``MATH`` attention, no fast path for `nn.MultiheadAttention`),
because it has no rule for the fused CPU operations. MACs = FLOPs / 2.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import options, record
from secateur.examples import Example, leaving_no_trace
from secateur.profiling.macs import count_macs

REAL_LIMIT = 100_000_000  # parameters


def main() -> None:
    given = options(__doc__).parse_args()
    warnings.simplefilter("ignore")
    rows = [row for name in classifiers(quick=given.quick) for row in compare_on_classifier(name)]
    rows += [compare_by_hand(*case) for case in blind_spots()]
    off = [row for row in rows if row["ratio"] != 1]
    print(f"{len(rows)} comparisons, {len(off)} differ from the reference: {[row['model'] for row in off]}")
    if not given.quick:
        record("macs_zoo", rows, out=given.out, versions={p: version(p) for p in ("torchvision", "transformers")})


def classifiers(*, quick: bool) -> list[str]:
    from torchvision.models import list_models

    names = [n for n in list_models() if "." not in n]
    names = [n for n in names if not n.startswith(_OTHER_TASKS)]
    return names[::12] if quick else names


_OTHER_TASKS = (
    "raft",
    "fasterrcnn",
    "fcos",
    "keypointrcnn",
    "maskrcnn",
    "retinanet",
    "ssd",
    "deeplab",
    "fcn",
    "lraspp",
    "quantized",
    "mc3",
    "mvit",
    "r3d",
    "r2plus1d",
    "s3d",
    "swin3d",
)


def compare_on_classifier(name: str) -> Iterator[dict[str, Any]]:
    from torchvision.models import get_model

    size = 299 if name == "inception_v3" else 224
    real = None
    try:
        with torch.device("meta"):
            model = get_model(name, weights=None).eval()
    except NotImplementedError:  # RegNets compute their widths with tensors
        real = get_model(name, weights=None).eval()
        model = copy.deepcopy(real).to("meta")
    parameters = sum(p.numel() for p in model.parameters())
    yield compare(name, "meta", model, Example.of(torch.zeros(1, 3, size, size, device="meta"))) | {
        "params": parameters
    }
    if parameters <= REAL_LIMIT:
        real = real or get_model(name, weights=None).eval()
        yield compare(name, "cpu", real, Example.of(torch.zeros(1, 3, size, size))) | {"params": parameters}


def compare(name: str, device: str, model: nn.Module, example: Example) -> dict[str, Any]:
    with leaving_no_trace(model):
        ours = count_macs(model, *example)
        plain = torch_macs(model, example)
        with attention_taken_apart():
            torchs = torch_macs(model, example)
    total = sum(ours.total.values())
    row = {"model": name, "device": device, "macs": total, "torch_macs": torchs, "torch_macs_as_it_is": plain}
    row |= {"reference": "torch", "ratio": total / torchs if torchs else None, "uncounted": list(ours.uncounted)}
    print(f"{name:24} {device:5} {total:>16,} {torchs:>16,} {plain:>16,} {row['ratio']}", flush=True)
    return row


def torch_macs(model: nn.Module, example: Example) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*example.args, **example.kwargs)
    return counter.get_total_flops() // 2


@contextmanager
def attention_taken_apart() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def blind_spots() -> Iterator[tuple[str, nn.Module, Any, int]]:
    """Models whose MACs follow from their sizes by hand: name, model, example, MACs."""
    length, batch = 100, 2
    lstm = nn.LSTM(32, 64, num_layers=2, bidirectional=True)
    first, second = 4 * 64 * (32 + 64), 4 * 64 * (128 + 64)  # gates x (inputs + state), both layers
    yield "lstm", lstm, torch.zeros(length, batch, 32), length * batch * 2 * (first + second)
    yield "gru", nn.GRU(32, 64), torch.zeros(length, batch, 32), length * batch * 3 * 64 * (32 + 64)
    yield "encoder", *_encoder(width=64, hidden=128, layers=3, tokens=50)
    yield from transformers_by_hand(tokens=16, width=64, hidden=128, layers=2, words=100)


def _encoder(*, width: int, hidden: int, layers: int, tokens: int) -> tuple[nn.Module, Any, int]:
    layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True)
    each = _attention(tokens, width, width) + 2 * tokens * width * hidden
    return nn.TransformerEncoder(layer, layers), torch.zeros(1, tokens, width), layers * each


def _attention(tokens: int, width: int, key_width: int) -> int:
    """Four projections and two products of all pairs of tokens."""
    return 2 * tokens * width * (width + key_width) + 2 * tokens * tokens * width


def transformers_by_hand(*, tokens: int, width: int, hidden: int, layers: int, words: int) -> Iterator[Any]:
    import transformers as hf

    ids = {"input_ids": torch.zeros(1, tokens, dtype=torch.long)}
    sizes = {"vocab_size": words, "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": hidden}
    mlp, head = 2 * tokens * width * hidden, tokens * width * words
    bert = hf.BertModel(hf.BertConfig(**sizes, num_attention_heads=4))
    yield "bert", bert, ids, layers * (_attention(tokens, width, width) + mlp) + width * width  # and the pooler
    gpt = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=words, n_embd=width, n_layer=layers, n_head=4, n_inner=hidden))
    yield "gpt2", gpt, ids, layers * (_attention(tokens, width, width) + mlp) + head
    config = hf.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    llama = layers * (_attention(tokens, width, width // 2) + 3 * mlp // 2) + head  # rotary angles are elementwise
    yield "llama", hf.LlamaForCausalLM(config), ids, llama


def compare_by_hand(name: str, model: nn.Module, example_inputs: Any, expected: int) -> dict[str, Any]:
    example = Example.of(example_inputs)
    return compare(name, "cpu", model, example) | _against(expected, model, example)


def _against(expected: int, model: nn.Module, example: Example) -> dict[str, Any]:
    with leaving_no_trace(model):
        total = sum(count_macs(model, *example).total.values())
    print(f"{'':24} by hand {expected:>14,}  {total / expected}")
    return {"by_hand": expected, "reference": "by hand", "ratio": total / expected}


if __name__ == "__main__":
    main()
