"""How coupling and narrowing grow: seconds and peak memory of ``couple`` + ``narrow``, each network in a fresh process.

``couple`` runs the model once, in dye, and tries what it found on a copy without data; ``narrow`` takes half of every group out, in
place, and compares with the masked model. Peak memory is the growth of the resident set over the built model that had run once,
so it counts copies of weights, activations and colours. One thread; ``forward`` is one plain run of the same example.

    python -m benchmarks.narrowing_growth                     all networks, about three minutes
    python -m benchmarks.narrowing_growth --only resnet50     one of them
    python -m benchmarks.narrowing_growth --profile vit_base  where the time of one goes
"""

import cProfile
import io
import json
import pstats
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from benchmarks.record import options, record
from secateur.coupling.channels import Channels
from secateur.planning import plan
from secateur.scores import Scores

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
VITS = {"vit_tiny": "tiny", "vit_small": "small", "vit_base": "base", "vit_large": "large"}
LLAMAS = {f"llama_{n}": n for n in (2, 4, 8, 16, 32)}


def make(name: str) -> tuple[nn.Module, Any]:
    """A network with random weights, and its example."""
    torch.manual_seed(0)
    if name in RESNETS:
        import torchvision

        return getattr(torchvision.models, name)().eval(), torch.randn(1, 3, 224, 224)
    if name in VITS:
        import timm

        return timm.create_model(f"vit_{VITS[name]}_patch16_224").eval(), torch.randn(1, 3, 224, 224)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=688, num_hidden_layers=LLAMAS[name],
        num_attention_heads=8, num_key_value_heads=4, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(0, 1000, (1, 32))}


def halved(model: nn.Module, coupling: Any) -> sc.Masks:
    """Masks that remove half of every group, at random."""
    generator = torch.Generator().manual_seed(0)
    own = dict(model.named_parameters())
    names = {name for group in coupling.groups() for name, _ in group.places if name in own}
    scores = Scores({name: torch.rand(own[name].shape, generator=generator) for name in sorted(names)})
    from secateur.allocations.uniform import Uniform

    return plan(scores, Channels(groups=coupling.groups()), Uniform(sparsity=0.5))


def measure(name: str) -> dict[str, Any]:
    """One network in this process."""
    torch.set_num_threads(1)
    model, example = make(name)
    params = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        call = (lambda: model(**example)) if isinstance(example, dict) else (lambda: model(example))
        call()
        begun = time.perf_counter()
        call()
        forward = time.perf_counter() - begun
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = _status("VmRSS"), time.perf_counter()
    coupling = sc.couple(model, example)
    couple_seconds, couple_peak = time.perf_counter() - begun, _status("VmHWM") - before
    masks = halved(model, coupling)
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = _status("VmRSS"), time.perf_counter()
    thin = sc.narrow(model, masks, example, coupling=coupling, inplace=True)
    narrow_seconds, narrow_peak = time.perf_counter() - begun, _status("VmHWM") - before
    after = sum(p.numel() for p in thin.parameters())
    return {
        "network": name,
        "params": params,
        "params_after": after,
        "groups": len(coupling.groups()),
        "colours": coupling.dye.palette.size,
        "forward_seconds": round(forward, 3),
        "couple_seconds": round(couple_seconds, 3),
        "narrow_seconds": round(narrow_seconds, 3),
        "couple_peak_mb": round(couple_peak / 1e6, 1),
        "narrow_peak_mb": round(narrow_peak / 1e6, 1),
        "weights_mb": round(params * 4 / 1e6, 1),
    }


def profiled(name: str) -> str:
    """The ten functions of ``couple`` that take longest by themselves."""
    torch.set_num_threads(1)
    model, example = make(name)
    profile = cProfile.Profile()
    profile.runcall(sc.couple, model, example)
    out = io.StringIO()
    stats = pstats.Stats(profile, stream=out)
    stats.sort_stats("tottime").print_stats(14)
    stats.sort_stats("cumulative").print_stats("secateur", 24)
    return out.getvalue()


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Each network in a process of its own."""
    parser = options(__doc__)
    parser.add_argument("--only", help="names with this in them")
    parser.add_argument("--one", help="measure here and print JSON")
    parser.add_argument("--profile", help="where the time goes")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one)))
        return
    if chosen.profile:
        print(profiled(chosen.profile))
        return
    rows = []
    for name in (*RESNETS, *VITS, *LLAMAS):
        if chosen.only and chosen.only not in name:
            continue
        found = subprocess.run(
            [sys.executable, "-m", "benchmarks.narrowing_growth", "--one", name],
            capture_output=True,
            text=True,
            check=False,
        )
        last = (found.stderr or "no output").strip().splitlines()[-1:]
        row = json.loads(found.stdout.splitlines()[-1]) if found.returncode == 0 else {"network": name, "failed": last}
        rows.append(row)
        print(row, flush=True)
    if not chosen.quick and not chosen.only:
        record("narrowing_growth", rows, out=chosen.out, unit="seconds and megabytes of couple + narrow, one thread")


if __name__ == "__main__":
    main()
