"""Check one architecture: couple, take half of every group out, and hold the result against the masked model.

Runs in a process of its own. What it finds goes into a dictionary as it is found, so that a killed process leaves what it knew.
"""

import copy
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import secateur as sc
from benchmarks.coverage.cases import Case, Entry, call
from secateur.allocations.uniform import Uniform
from secateur.coupling.channels import Channels
from secateur.coupling.running import results_of
from secateur.criteria.random import Random

Row = dict[str, Any]
TOLERANCE = 1e-4
Keep = Callable[[Row], None]


def check(entry: Entry, folder: Path, keep: Keep) -> None:
    """Narrow by half and compare; raises `Wrong` where the result is not what was asked."""
    case = entry.build(seed=0)
    before = outputs(case.model, case.fresh)
    keep({"stage": "couple", "params": count(case.model), "base_mb": peak()})
    pruned = narrow(case, keep)
    keep({"stage": "compare", "ratio": round(count(pruned.model) / count(case.model), 4)})
    after = outputs(pruned.model, case.fresh)
    expected = outputs(pruned.masks.apply_(copy.deepcopy(case.model)), case.fresh)
    same_shapes(before, after, expected)
    difference, effect = apart(expected, after), apart(before, expected)
    keep({"difference": difference, "effect": effect})
    if not difference <= TOLERANCE:  # rounding reorders the nearly equal boxes of detectors; in float64 it does not
        difference = apart_in_double(case, pruned)
        keep({"difference": difference, "double": True})
    if not difference <= TOLERANCE:
        raise Wrong(f"narrowed differs from masked by {difference:.1e} on fresh inputs")
    del expected, before
    keep({"stage": "save"})
    path = folder / "narrow.safetensors"
    sc.save(pruned, path)
    torch.save(after, folder / "outputs.pt")
    keep({"stage": "train"})
    train(pruned.model, case)


def narrow(case: Case, keep: Keep) -> sc.Pruned:
    """What ``sc.prune(model, "random", granularity="channel", sparsity=0.5, scope="layer")`` does, less the receipt's clock."""
    start = time.process_time()
    coupling = sc.couple(case.model, case.example)
    groups = coupling.groups()
    coupled = time.process_time() - start
    keep(
        {"couple_s": round(coupled, 2), "groups": len(groups), "units": sum(g.units for g in groups), "stage": "prune"}
    )
    keep({"kinds": {kind: sum(g.kind == kind for g in groups) for kind in sorted({g.kind for g in groups})}})
    if not groups:
        raise Refused(why_nothing(case.model, coupling))
    own = dict(case.model.named_parameters())
    targets = {name: sc.LayerFacts() for group in groups for name, _ in group.places if name in own}
    scores = Random(seed=0)(case.model, targets)
    masks = sc.plan(scores, Channels(groups=groups), Uniform(sparsity=0.5, min_kept=1))
    del scores
    thin = sc.narrow(case.model, masks, case.example, coupling=coupling)
    keep({"prune_s": round(time.process_time() - start, 2), "peak_mb": peak()})
    keep(reaching(case.model, coupling))
    report = sc.compare(case.model, thin, gzip=False)
    return sc.Pruned(thin, masks, report, thin.secateur_structure)  # type: ignore[arg-type]


def reload(entry: Entry, folder: Path) -> float:
    """Load the file into another instance, built from another seed; the difference to what the first process computed."""
    case = entry.build(seed=1)
    again = sc.load(folder / "narrow.safetensors", case.model).model
    return apart(torch.load(folder / "outputs.pt"), outputs(again, case.fresh))


def train(model: nn.Module, case: Case) -> None:
    """One backward pass in train mode; gradients must be finite and of the parameters' shapes."""
    model.train()
    case.loss(model).backward()
    found = [p for p in model.parameters() if p.grad is not None]
    if not found or any(p.grad is None or p.grad.shape != p.shape for p in found):
        raise Wrong("no gradients, or gradients of another shape")
    if not all(bool(torch.isfinite(p.grad).all()) for p in found if p.grad is not None):
        raise Wrong("gradients are not finite")


class Refused(Exception):
    """Nothing may leave, and the library says why."""


class Wrong(Exception):
    """The narrowed model is not what it should be."""


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(7)
    with torch.no_grad():
        return [t.clone() for t in results_of(model, call(model.eval(), inputs))]


def same_shapes(before: list[Tensor], after: list[Tensor], masked: list[Tensor]) -> None:
    """Detection models return as many boxes as they find, so where masking alone changes a shape, that is the measure."""
    shapes = [[list(t.shape) for t in outs] for outs in (before, after, masked)]
    if shapes[1] != shapes[2]:
        raise Wrong(f"outputs have shapes {shapes[1]}, those of the masked model {shapes[2]}")


def apart(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference of any output, relative to that output's largest value; infinite where shapes differ."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not a.is_floating_point() or not a.numel():
            continue
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            return float("inf")
        if finite.any():
            worst = max(worst, float((a - b)[finite].abs().max() / a[finite].abs().max().clamp_min(1e-12)))
    return worst


def apart_in_double(case: Case, pruned: sc.Pruned) -> float:
    """The same comparison in float64."""
    fresh = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, case.fresh)
    masked = pruned.masks.apply_(copy.deepcopy(case.model)).double()
    return apart(outputs(masked, fresh), outputs(copy.deepcopy(pruned.model).double(), fresh))


def reaching(model: nn.Module, coupling: sc.coupling.Coupling) -> Row:
    """The fraction of parameters in tensors of which some dimension is held, and that in tensors held by an output."""
    total, held, output = 0, 0, 0
    for name, parameter in model.named_parameters():
        dims = coupling.dye.owners.get(name, {})
        total += parameter.numel()
        if any(bool((coupling.classes[c] == 0).any()) for c in dims.values()):
            held += parameter.numel()
            output += parameter.numel() * ("reaches the model's output" in coupling.explain(name))
    return {"held": round(held / total, 3), "reaching_outputs": round(output / total, 3)}


def why_nothing(model: nn.Module, coupling: sc.coupling.Coupling) -> str:
    names = [n for n, p in model.named_parameters() if p.dim() > 1]
    lines = [
        line.strip() for name in names[:6] for line in coupling.explain(name).splitlines() if "may not leave" in line
    ]
    return "no channel may leave: " + " | ".join(dict.fromkeys(lines))[:600]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def peak() -> int:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
