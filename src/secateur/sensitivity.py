"""Sensitivity analysis: how much each layer, or each group of coupled channels, bears when it alone is pruned.

One working copy of the model serves all points: a layer is masked, the model is scored, and the exact weights are put back, NaN
and signed zeros included. The criterion is asked once, about the dense model. Channels are masked, too: narrowing computes the same.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from secateur.allocations.sensitive import Sensitive
from secateur.counting import check_sparsity
from secateur.errors import BadFile, UnknownName
from secateur.examples import leaving_no_trace
from secateur.masks import Masks
from secateur.names import criterion_of, standing
from secateur.probing import probes_of
from secateur.protocols import Criterion, Granularity
from secateur.targets import Ignore
from secateur.task import Task

__all__ = ["SPARSITIES", "Curve", "Sensitivity", "sensitivity"]

Metric: TypeAlias = Literal["evaluate", "loss"]
Curve: TypeAlias = tuple[tuple[float, float], ...]
SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What pruning each layer alone does.

    Args:
        curves: parameter name (or group of coupled channels) to ``(sparsity, score)`` points, in rising sparsity; the sparsity
            is the one really reached, of channels the fraction of units.
        dense: the score with nothing removed.
        metric: "evaluate" (larger is better) or "loss" (smaller is better).
        method, granularity: how weights were chosen.
        sizes: how many weights each parameter has, or hang on each group.
    """

    curves: Mapping[str, Curve]
    dense: float
    metric: Metric = "evaluate"
    method: str = "magnitude"
    granularity: str = "unstructured"
    sizes: Mapping[str, int]

    @property
    def label(self) -> str:
        """What the scores are, for an axis."""
        return "score" if self.metric == "evaluate" else "loss"

    def harm(self, name: str) -> Curve:
        """How much worse each point of ``name`` is than the dense model; positive is worse, whatever the metric."""
        sign = 1 if self.metric == "loss" else -1
        return tuple((sparsity, sign * (score - self.dense)) for sparsity, score in self.curves[name])

    def allocation(self, sparsity: float, *, min_kept: int | None = None) -> Sensitive:
        """The allocation that these curves predict to do least harm at ``sparsity`` in total.

        Args:
            sparsity: the fraction removed, of weights or (granularity "channel") of units.
            min_kept: units that stay in every layer at least; by default none, and one of every group of channels.
        """
        harms = tuple((name, self.harm(name)) for name in self.curves)
        least = int(self.granularity == "channel") if min_kept is None else min_kept
        return Sensitive(sparsity=sparsity, harms=harms, min_kept=least)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; a score that is not finite becomes text."""
        plain = asdict(self)
        plain["curves"] = {name: [[s, _finite(v)] for s, v in points] for name, points in self.curves.items()}
        return plain | {"dense": _finite(self.dense)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Sensitivity":
        """Read what `to_dict` wrote.

        Raises:
            BadFile: a field is missing or of the wrong type.
        """
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadFile(f"these are no sensitivity curves that Secateur wrote: at {where}, {first['msg']}") from error

    def plot(self, path: str | Path) -> Path:
        """Draw all curves to ``path``; its ending (svg, png, pdf) says how."""
        from secateur.reporting.drawing import save_curves  # a door: drawing stands above values

        return save_curves(self, path)

    def __str__(self) -> str:
        from secateur.reporting.terminal import render_text

        return render_text(self)


def sensitivity(
    model: nn.Module,
    task: Task,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    granularity: str | Granularity = "unstructured",
    method: str | Criterion = "magnitude",
    ignore: Ignore | Iterable[Ignore] = (),
    metric: Metric = "evaluate",
    example_inputs: Any = None,
    heads: str = "whole",
    on_progress: Callable[[int, int, str], object] | None = None,
) -> Sensitivity:
    """Prune each layer alone at each sparsity and score the model; the model is not touched.

    Args:
        model: a trained model.
        task: ``evaluate`` for the metric "evaluate"; ``batches`` and ``loss`` for "loss", and for criteria that need data.
        sparsities: fractions removed; a granularity with a quota (N:M) has only its own.
        granularity: what leaves together; "channel" for groups of coupled channels, which needs ``example_inputs``.
        method: the criterion, by name or as an object.
        ignore: layers to leave out; see `find_targets`.
        metric: what to measure. The loss is the finer instrument: an accuracy that is already at chance cannot fall further.
        example_inputs: to find coupled channels: a tensor, a tuple, or a dict of keyword inputs.
        heads: "whole" or "inside"; see `secateur.couple`.
        on_progress: called with (points done, points in all, layer) before each point, for progress bars.

    Raises:
        NeedsTask: the task lacks what the metric or the criterion needs.
        BadSparsity, UnknownName, NothingToPrune: as for pruning.

    >>> layer = nn.Linear(4, 1, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> task = Task(evaluate=lambda model: float(model(torch.ones(4))))  # with half its weights, half the output
    >>> sensitivity(layer, task, sparsities=[0.5]).curves
    {'weight': ((0.5, 2.0),)}
    """
    steps = sorted({check_sparsity(s) for s in sparsities})
    measure = _measure(task, metric)
    work = copy.deepcopy(model)
    targets, probes = probes_of(work, granularity, ignore=ignore, example_inputs=example_inputs, heads=heads)
    steps = [0.0] if any(probe.fixed for probe in probes) else steps
    criterion = standing(criterion_of(method))
    scores = replace(criterion(work, targets, task), facts=targets)
    dense, curves = measure(work), {}
    for place, probe in enumerate(probes):
        points = {}
        for offset, step in enumerate(steps):
            if on_progress:
                on_progress(place * len(steps) + offset, len(probes) * len(steps), probe.name)
            masks, reached = probe.plan(scores, step)
            if reached not in points:
                with _masked(work, masks):
                    points[reached] = measure(work)
        curves[probe.name] = tuple(points.items())
    return Sensitivity(
        curves=curves,
        dense=dense,
        metric=metric,
        method=method if isinstance(method, str) else repr(method),
        granularity=granularity if isinstance(granularity, str) else repr(granularity),
        sizes={probe.name: probe.weights for probe in probes},
    )


@contextmanager
def _masked(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Mask for a while; afterwards every bit is as it was."""
    parameters = {name: model.get_parameter(name) for name in masks}
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    masks.apply_(model)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])


def _measure(task: Task, metric: Metric) -> Callable[[nn.Module], float]:
    if metric == "evaluate":
        evaluate = task.needs_evaluate("sensitivity(metric='evaluate')")
    elif metric == "loss":
        evaluate = partial(_mean_loss, task)
        task.needs_loss("sensitivity(metric='loss')")
    else:
        raise UnknownName(f"metric={metric!r} is neither 'evaluate' nor 'loss'")

    def measure(model: nn.Module) -> float:
        with leaving_no_trace(model):
            return float(evaluate(model))

    return measure


def _mean_loss(task: Task, model: nn.Module) -> float:
    loss = task.needs_loss("sensitivity(metric='loss')")
    values = [float(loss(model, batch)) for batch in task.each_batch("sensitivity(metric='loss')")]
    return sum(values) / len(values)


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
