"""Small parts of layer-wise surgery: what can be operated on, who shares inputs, what is imitated, how the bias follows, what a receipt says of a layer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import BadCalibration, NothingToPrune
from secateur.facts import LayerFacts
from secateur.inflow import takes_part
from secateur.moments import Moments
from secateur.surgery import Operation
from secateur.targets import Ignore, find_targets

__all__ = [
    "bias_step",
    "chosen_places",
    "imitated",
    "noting",
    "refuse_constant",
    "row_of",
    "shared_moments",
    "surgical_targets",
]


def surgical_targets(model: nn.Module, ignore: Ignore | Iterable[Ignore]) -> dict[str, LayerFacts]:
    """The weights that are multiplied with something; look-up tables are left alone.

    Raises:
        NothingToPrune: there is none.
    """
    found = {
        name: facts
        for name, facts in find_targets(model, ignore=ignore).items()
        if facts.kind != "embedding" and takes_part(model.get_submodule(facts.module))
    }
    if not found:
        raise NothingToPrune(
            f"{type(model).__name__} has no layer with a rule for what it takes in; see secateur.inflow"
        )
    return found


def noting(into: dict[str, list[Tensor]]) -> Callable[[str, Mapping[str, Tensor]], None]:
    """Write down what layers take in, by parameter."""

    def note(path: str, feeds: Mapping[str, Tensor]) -> None:
        for attribute, x in feeds.items():
            into.setdefault(f"{path}.{attribute}".lstrip("."), []).append(x)

    return note


def shared_moments(flows: Mapping[str, Sequence[Tensor]]) -> dict[str, Moments]:
    """One set of moments for all parameters that are multiplied with the very same numbers, such as queries, keys and values."""
    by_source: dict[tuple[Any, ...], Moments] = {}
    found = {}
    for name, calls in flows.items():
        source = tuple((x.data_ptr(), tuple(x.shape), x.stride()) for x in calls)
        found[name] = by_source.setdefault(source, Moments(name))
    return found


def chosen_places(there: int, most: int, generator: torch.Generator) -> slice | Tensor:
    """At most so many samples, at random."""
    return slice(None) if there <= most else torch.randperm(there, generator=generator)[:most]


def imitated(rows: Tensor, crossed: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """The dense weights that do best on x' what ``rows`` does on x, held back towards ``rows`` by the damping.

    min over V   E || W x - V x' ||^2 + a || V - W ||^2     =>     V = W (C + a I) (H + a I)^-1,     a = damping * mean diagonal
    """
    w, h, c = rows.double(), hessian.double().clone(), crossed.double().clone()
    added = damping * float(h.diagonal().mean())
    if not float(h.diagonal().sum()) > 0:
        return rows
    added = added or 1e-10 * float(h.diagonal().mean())
    while True:
        h.diagonal().add_(added)
        c.diagonal().add_(added)
        factor, failed = torch.linalg.cholesky_ex(h)
        if not failed:
            return torch.cholesky_solve((w @ c).t(), factor).t().to(rows.dtype)
        added *= 9


def bias_step(found: Moments, before: Tensor, after: Tensor) -> Tensor:
    """What the bias gains, so that the mean output is the one that is imitated, ``[groups * rows]``."""
    steps = []
    for group in range(len(before)):
        now, dense = found.means(group)
        steps.append(before[group].to(dense.dtype) @ dense - after[group].to(now.dtype) @ now)
    return torch.cat(steps)


def row_of(name: str, result: Operation, samples: int, rows: Tensor) -> dict[str, Any]:
    """A layer's line in the receipt: rises are mean squares per sample, summed over outputs."""
    return {
        "name": name,
        "kept": int(result.mask.sum()),
        "of": rows.numel(),
        "samples": samples,
        "predicted": result.predicted,
        "refitted": result.refitted,
        "measured": result.measured,
        "relative": result.measured / max(result.energy, 1e-300),
        "norm": float(result.weights.double().square().sum().sqrt()),
        "dense_norm": float(rows.double().square().sum().sqrt()),
        **result.notes,
    }


def refuse_constant(batches: Sequence[Any]) -> None:
    """Refuse data that cannot say anything.

    Raises:
        BadCalibration: a batch holds NaN or infinite numbers, or all numbers of all batches are the same.
    """
    lows, highs = [], []
    for at, batch in enumerate(batches):
        first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
        for leaf in tree_leaves(first):
            if not isinstance(leaf, Tensor) or not leaf.numel() or leaf.dtype == torch.bool:
                continue
            if not bool(torch.isfinite(leaf).all()):
                bad = int((~torch.isfinite(leaf)).sum())
                raise BadCalibration(
                    f"calibration batch {at} holds {bad:,} NaN or infinite numbers of {leaf.numel():,}: every Hessian would be NaN; clean the data"
                )
            lows.append(float(leaf.min()))
            highs.append(float(leaf.max()))
    if lows and len(set(lows + highs)) == 1:
        raise BadCalibration(
            f"every number of the {len(batches)} calibration batches is {lows[0]:g}: constant data say nothing about which weights matter; "
            "pass real inputs in Task(batches=...)"
        )
