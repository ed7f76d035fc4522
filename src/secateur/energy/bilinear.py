"""A network's cost as a function of its widths, fitted to measurements (Yang, Zhu & Liu 2019, "ECC", CVPR, eq. 3).

    E(s) = a_0 + sum over layers j of  a_j * s_in(j) * s_out(j)                   s: fraction of the inputs and outputs that is left

    min over a of  sum over measurements of ((E(s) - measured) / measured)^2  +  ridge * |a / mean - prior|^2

Widths belong to groups of coupled channels, so branches that add up share one, a depthwise layer has its one width once, and a flattened
map counts its channels, not its pixels. The ridge pulls towards ``prior``: by default what the multiply-accumulates of the layers say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.coupling import Coupling
from secateur.coupling.channels import Channels
from secateur.energy.meters import Meter
from secateur.energy.tables import CostTable
from secateur.errors import BadSparsity, WrongModel
from secateur.examples import Example, device_of, leaving_no_trace
from secateur.narrowing.meeting import pricing_of, steps_of
from secateur.narrowing.narrow import cut_copy
from secateur.pricing import Part, Pricing
from secateur.protocols import Cost
from secateur.scores import Scores

__all__ = ["Bilinear", "fit_bilinear", "measure_widths", "sample_widths"]


@final
@dataclass(frozen=True, kw_only=True)
class Bilinear:
    """A fitted cost; it plays the role of a `Cost`, so budgets can be in it.

    Args:
        pricing: the cost as a function of the units left by group.
        names: the layers of the terms, the constant first.
        coefficients: what each term costs at full width, in ``unit``.
        unit: of the measurements.
        measured: what was measured, in words.
        shapes: of the full network's parameters, by which `measure` knows the widths of a narrowed one.
    """

    pricing: Pricing
    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    unit: str
    measured: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __call__(self, counts: Mapping[str, int]) -> float:
        """What it costs when so many units of each group are left."""
        return self.pricing(counts)

    def error(self, table: CostTable) -> float:
        """The mean relative error on measurements, best on ones it was not fitted to."""
        apart = [abs(self(row) - cost) / cost for row, cost in zip(table.counts, table.costs, strict=True)]
        return sum(apart) / len(apart)

    def parts(self, model: nn.Module, example_inputs: Any) -> tuple[Part, ...]:  # noqa: ARG002
        """The terms."""
        return self.pricing.parts

    def measure(self, models: Sequence[nn.Module], example_inputs: Any) -> list[float]:  # noqa: ARG002
        """What the fit says about each, by the shapes of its parameters; nothing runs.

        Raises:
            WrongModel: a parameter is missing.
        """
        return [self._of_shapes({name: tuple(p.shape) for name, p in model.named_parameters()}) for model in models]

    def _of_shapes(self, found: Mapping[str, tuple[int, ...]]) -> float:
        full, total = dict(self.shapes), 0.0
        for part in self.pricing.parts:
            share = 1.0
            for name, dim in part.places:
                if name not in found:
                    raise WrongModel(
                        f"the cost was fitted to a network with a parameter {name!r}, which this one lacks"
                    )
                share *= found[name][dim] / full[name][dim]
            total += part.amount * share
        return total


def sample_widths(
    coupling: Coupling, count: int, *, seed: int = 0, least: float = 0.1, round_to: int = 1
) -> list[dict[str, int]]:
    """Random widths to measure at: the full network first, then every group's fraction between ``least`` and 1, independently.

    Args:
        coupling: of the network.
        count: how many.
        seed: of the draw.
        least: the smallest fraction; a fit to wide networks only says little about narrow ones.
        round_to: widths in multiples of this. Processors compute in blocks of 8 or 16 channels, which no bilinear model sees.
    """
    channels, generator = Channels(groups=coupling.groups()), torch.Generator().manual_seed(seed)
    full = {channels.key(group): group.units for group in channels.groups}
    steps, rows = dict(steps_of(channels, round_to)), [full]
    for _ in range(count - 1):
        shares = least + (1 - least) * torch.rand(len(full), generator=generator)
        drawn = {name: units * float(share) for (name, units), share in zip(full.items(), shares, strict=True)}
        rows.append({name: min(full[name], max(1, round(x / steps[name])) * steps[name]) for name, x in drawn.items()})
    return rows[:count]


def measure_widths(
    model: nn.Module,
    coupling: Coupling,
    widths: Sequence[Mapping[str, int]],
    *,
    example_inputs: Any,
    meter: Meter,
    seconds: float = 0.2,
) -> CostTable:
    """Narrow copies of ``model`` to each of ``widths`` and measure each in turn with ``model`` itself.

    A cost is the median ratio to the full network times the least that this one took: what else runs slows both.
    """
    channels = Channels(groups=coupling.groups())
    example = Example.of(example_inputs, device_of(model))
    full = partial(model, *example.args, **example.kwargs)
    ratios = []
    with leaving_no_trace(model):
        whole = meter.per_call(full, seconds=seconds)
        for row in widths:
            narrow = _narrowed(model, coupling, channels, row)
            with leaving_no_trace(narrow):
                ratios.append(meter.ratio(partial(narrow, *example.args, **example.kwargs), full, seconds=seconds))
        whole = min(whole, meter.per_call(full, seconds=seconds))
    return CostTable.of(list(widths), [whole * ratio for ratio in ratios], unit=meter.unit, measured=meter.says)


def fit_bilinear(
    table: CostTable, model: nn.Module, coupling: Coupling, *, example_inputs: Any, terms: Cost, ridge: float = 1e-3
) -> Bilinear:
    """Fit to ``table``.

    Args:
        table: measurements; its columns are the groups of ``coupling``.
        model: the full network.
        coupling: of it.
        example_inputs: what the terms are counted with.
        terms: the cost whose parts are the prior, such as ``Macs()``.
        ridge: how strongly coefficients are pulled towards it; 0: not at all.

    Raises:
        BadSparsity: the table's columns are other groups, or it has less than two rows.
    """
    pricing = pricing_of(terms, coupling, coupling.graph or model, example_inputs)
    missing = {name for name, _ in pricing.units} ^ set(table.groups)
    if missing or len(table.costs) < 2:
        raise BadSparsity(
            f"the table has {len(table.costs)} row(s) for groups {', '.join(table.groups)}; this network's are "
            f"{', '.join(name for name, _ in pricing.units)}: measure at least two widths of the same network"
        )
    layers: dict[str, list[Part]] = {}
    for part in pricing.parts:
        layers.setdefault(part.places[0][0] if part.places else "", []).append(part)
    names = ("constant", *layers)
    one = replace(pricing, factor=1.0)
    columns = [torch.ones(len(table.costs), dtype=torch.float64)]
    prior = [0.0]
    for parts in layers.values():
        alone = replace(one, parts=tuple(parts))
        whole = alone({})
        columns.append(torch.tensor([alone(row) / whole for row in table.counts], dtype=torch.float64))
        prior.append(whole)
    found = _ridge(torch.stack(columns, 1), torch.tensor(table.costs, dtype=torch.float64), torch.tensor(prior), ridge)
    parts_found = [Part(found[0])]
    for (_, parts), amount in zip(layers.items(), found[1:], strict=True):
        total = sum(part.amount for part in parts)
        parts_found += [Part(amount * part.amount / total, part.places) for part in parts]
    fitted = replace(pricing, parts=tuple(parts_found), factor=1.0)
    shapes = tuple((name, tuple(p.shape)) for name, p in model.named_parameters())
    return Bilinear(
        pricing=fitted, names=names, coefficients=tuple(found), unit=table.unit, measured=table.measured, shapes=shapes
    )


def _ridge(design: Tensor, costs: Tensor, prior: Tensor, ridge: float) -> list[float]:
    """Relative least squares with a pull towards the prior, scaled to the mean cost; negative terms are held at zero (NNLS)."""
    scale = costs.mean()
    prior = prior.double() / prior.sum()
    weighted, target = design / costs[:, None] * scale, torch.ones_like(costs)
    pull = (ridge * len(costs)) ** 0.5
    a = torch.cat([weighted, pull * torch.eye(design.shape[1], dtype=torch.float64)])
    b = torch.cat([target, pull * prior])
    free = torch.ones(design.shape[1], dtype=torch.bool)
    found = torch.zeros(design.shape[1], dtype=torch.float64)
    while bool(free.any()):
        part = torch.linalg.lstsq(a[:, free], b[:, None], driver="gelsd").solution[:, 0]
        if bool((part >= 0).all()):
            found[free] = part
            break
        free[free.nonzero().flatten()[part < 0]] = False
    return (found * scale).tolist()


def _narrowed(model: nn.Module, coupling: Coupling, channels: Channels, counts: Mapping[str, int]) -> nn.Module:
    members = {name: p.detach() for name, p in model.named_parameters()}
    keep = {channels.key(g): torch.arange(g.units) < counts[channels.key(g)] for g in channels.groups}
    masks = channels.spread(keep, Scores({n: members[n] for g in channels.groups for n, _ in g.places if n in members}))
    structure = coupling.structure_for(masks)
    return cut_copy(model, coupling, structure) if structure.kept else model
