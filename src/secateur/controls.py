"""Controls: what random deletion and magnitude leave of a network at the very same counts, so that a result can be judged."""

import copy

import torch
from torch import nn

from secateur.examples import leaving_no_trace
from secateur.granularities.unstructured import Unstructured
from secateur.masks import Masks
from secateur.planning import select
from secateur.protocols import Granularity, Targets
from secateur.scores import Scores
from secateur.task import Task

__all__ = ["controls_of"]


def controls_of(
    model: nn.Module,
    targets: Targets,
    masks: Masks,
    task: Task | None,
    *,
    granularity: Granularity | None = None,
    seed: int = 0,
    together: bool = False,
) -> dict[str, float]:
    """The task's quality of a magnitude and a random mask, nothing moved or retrained; empty without ``task.evaluate``.

    Args:
        model: the dense network.
        targets: how its parameters are laid out.
        masks: what was kept: each control keeps as many units of each parameter.
        task: says the quality.
        granularity: what leaves together; single weights by default.
        seed: of the random one.
        together: let the controls rank all parameters together, with the same total.
    """
    if task is None or task.evaluate is None:
        return {}
    kind = granularity or Unstructured()
    generator = torch.Generator().manual_seed(seed)
    weights = {name: model.get_parameter(name).detach() for name in masks}
    facts = {name: targets[name] for name in masks}
    kept = kind.pool(Scores({n: m.float() for n, m in masks.items()}, facts=facts))
    counts = {name: int((kept[name] > 0).sum()) for name in kept}
    evidence = {
        "magnitude": {name: w.double().square() for name, w in weights.items()},
        "random": {
            n: torch.rand(w.shape, generator=generator, dtype=torch.float64).to(w.device) for n, w in weights.items()
        },
    }
    found = {}
    for name, values in evidence.items():
        scores = Scores(values, facts=facts)
        own = _ranked(kind, scores, sum(counts.values())) if together else counts
        control = kind.spread(select(kind.pool(scores), own), scores)
        masked = control.apply_(copy.deepcopy(model))
        with leaving_no_trace(masked):
            found[name] = float(task.evaluate(masked))
    return found


def _ranked(kind: Granularity, scores: Scores, total: int) -> dict[str, int]:
    units = kind.pool(scores)
    flat = torch.cat([units[name].reshape(-1) for name in units])
    best = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    best[flat.argsort(descending=True, stable=True)[:total]] = True
    sizes = [units.count(name) for name in units]
    return {name: int(part.sum()) for name, part in zip(units, torch.split(best, sizes), strict=True)}
