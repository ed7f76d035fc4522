"""Small parts of layer-wise surgery: what can be operated on, who shares inputs, what is imitated, how the bias follows, what a receipt says of a layer."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import NothingToPrune
from secateur.facts import LayerFacts
from secateur.layers import facts_of
from secateur.layerwise.done import Operation
from secateur.layerwise.inflow import takes_part
from secateur.layerwise.moments import Moments
from secateur.targets import Ignore, find_targets

__all__ = [
    "alike",
    "bias_step",
    "chosen_places",
    "imitated",
    "noting",
    "row_of",
    "shared_moments",
    "surgical_targets",
]


_STATED = re.compile(
    r"weight_[ih]h_l\d+(_reverse)?"
)  # not what one is made of under weight norm, such as weight_hh_l0_v


def surgical_targets(model: nn.Module, ignore: Ignore | Iterable[Ignore]) -> dict[str, LayerFacts]:
    """The weights that are multiplied with something; look-up tables are left alone, also where a layer shares them.

    So are weights that are computed for every call, by weight norm or spectral norm: they cannot be written to.

    Raises:
        NothingToPrune: there is none.
    """
    tables = {
        id(m._parameters.get(a)) for m in model.modules() for a, f in facts_of(m).items() if f.kind == "embedding"
    }
    found = {
        name: facts
        for name, facts in find_targets(model, ignore=ignore).items()
        if id(model.get_parameter(name)) not in tables
        and takes_part(model.get_submodule(facts.module))
        and not (facts.kind == "recurrent" and _STATED.fullmatch(name.rpartition(".")[2]) is None)
    }
    if not found:
        raise NothingToPrune(
            f"{type(model).__name__} has no layer with a rule for what it takes in; see secateur.layerwise.inflow"
        )
    return found


def noting(into: dict[str, list[Tensor]], owner: Mapping[str, str]) -> Callable[[str, Mapping[str, Tensor]], None]:
    """Write down what layers take in, by the parameter that ``owner`` has for the name under which they hold it."""

    def note(path: str, feeds: Mapping[str, Tensor]) -> None:
        for attribute, x in feeds.items():
            held = f"{path}.{attribute}".lstrip(".")
            if held in owner:
                into.setdefault(owner[held], []).append(x)

    return note


def shared_moments(flows: Mapping[str, Sequence[Tensor]], *, split: bool = False) -> dict[str, Moments]:
    """One set of moments for all parameters that are multiplied with the very same numbers, such as queries, keys and values."""
    by_source: dict[tuple[Any, ...], Moments] = {}
    found = {}
    for name, calls in flows.items():
        source = tuple((x.data_ptr(), tuple(x.shape), x.stride()) for x in calls)
        found[name] = by_source.setdefault(source, Moments(name, split))
    return found


def alike(now: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Whether a layer was called as often in both networks, with as many samples."""
    return [x.shape for x in now] == [x.shape for x in before]


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


def row_of(name: str, result: Operation, found: Moments, rows: Tensor) -> dict[str, Any]:
    """A layer's line in the receipt: rises are mean squares per sample, summed over outputs."""
    return {
        "name": name,
        "kept": int(result.mask.sum()),
        "of": rows.numel(),
        "samples": found.samples,
        "predicted": result.predicted,
        "refitted": result.refitted,
        "measured": result.measured,
        "relative": result.measured / max(result.energy, 1e-300),
        "norm": float(result.weights.double().square().sum().sqrt()),
        "dense_norm": float(rows.double().square().sum().sqrt()),
        **result.notes,
        **({} if found.seen == found.samples else {"seen": found.seen}),
        **({} if found.paired else {"routed": True}),
    }
