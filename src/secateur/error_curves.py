"""Error curves of layers, measured by pruning each at a few sparsities on the dense network's inputs, and budgets found from them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.allocations.by_error import ByError
from secateur.allocations.global_ import Global
from secateur.allocations.per_layer import PerLayer
from secateur.allocations.priced import Priced
from secateur.budget_of_errors import Curve, cost_of, widths_of
from secateur.counting import kept_of
from secateur.errors import BadSparsity
from secateur.layerwise.calibration import Calibration
from secateur.layerwise.quota import Quota
from secateur.layerwise.surgery import trial_errors
from secateur.protocols import Allocation
from secateur.quadratic import rows_of_rise
from secateur.units import Units

__all__ = ["counts_by_error", "error_curves", "priced_by_error"]

_STEPS = (-0.2, -0.1, 0.0, 0.1, 0.2)


def counts_by_error(calibration: Calibration, units: Units, allocation: Allocation) -> dict[str, int]:
    """Units that stay by parameter; of least total error where ``allocation`` says only what all may spend together.

    Errors are weighed then, also within layers, from here on. Layers that are named one by one are left out of it.

    Raises:
        BadSparsity: the least that is to stay everywhere is more than what may stay.
    """
    if isinstance(allocation, PerLayer):
        named = allocation.named(units)
        rest = units.only([name for name in units if name not in named])
        return named | (counts_by_error(calibration, rest, allocation.otherwise) if rest else {})
    if isinstance(allocation, Global | Priced | ByError):
        calibration.weigh()
    if isinstance(allocation, Global):
        return _of_least_error(calibration, units, allocation)
    return dict(
        priced_by_error(calibration, units, allocation)(units) if isinstance(allocation, Priced) else allocation(units)
    )


def _of_least_error(calibration: Calibration, units: Units, allocation: Global) -> dict[str, int]:
    sizes = {name: units.count(name) for name in units}
    heard = {name: sizes[name] for name in sizes if calibration.hears(name)}
    silent = {name: kept_of(allocation.sparsity, sizes[name]) for name in sizes if name not in heard}
    curves = error_curves(calibration, heard, allocation.sparsity)
    room = kept_of(allocation.sparsity, units.total) - sum(silent.values())
    asked = sum(min(allocation.min_kept, size) for size in heard.values())
    if asked > max(room, 0):
        raise BadSparsity(
            f"{room} units may stay, but min_kept={allocation.min_kept} over {len(heard)} layers asks for {asked}; "
            "lower min_kept or the sparsity"
        )
    budget = max(len(heard), room)  # a weight of each stays, even where fewer were asked for
    found = widths_of(curves, heard, dict.fromkeys(heard, float), budget, min_kept=max(1, allocation.min_kept))
    return {name: (found | silent)[name] for name in sizes}


def priced_by_error(calibration: Calibration, units: Units, allocation: Priced) -> ByError:
    """The allocation that spends as much as ``allocation`` does, of least error; what never runs stays whole."""
    calibration.weigh()
    weights = {name: units.count(name) * units.tables[name].weights for name in units}
    prices = tuple((name, steps) for name, steps in allocation.prices if name in units and calibration.hears(name))
    whole = sum(cost_of(steps, weights[name]) for name, steps in prices)
    around = 1 - (allocation.limit - allocation.fixed) / whole if whole else 0.0
    curves = error_curves(calibration, {n: units.count(n) for n, _ in prices}, min(max(around, 0.05), 0.99))
    return ByError(
        curves=tuple(curves.items()),
        prices=allocation.prices,
        limit=allocation.limit,
        fixed=allocation.fixed,
        min_kept=int(allocation.min_kept),
    )


def error_curves(calibration: Calibration, sizes: Mapping[str, int], around: float) -> dict[str, Curve]:
    """For every parameter ``(sparsity, error)`` near the sparsity ``around``, by one step of the solver "columns" each."""
    at = sorted({round(min(max(around + step, around / 2), 1 - (1 - around) / 3), 6) for step in _STEPS})
    found: dict[str, Curve] = {}

    def look(name: str, rows: Tensor, hessians: list[Tensor], damping: float) -> None:
        if name not in sizes:
            return
        weigh = calibration.importance[name].view(len(rows), -1)
        settings = calibration.settings
        energy = max(_weighed(rows, hessians, weigh), 1e-300)
        counts = [kept_of(sparsity, sizes[name]) for sparsity in at]
        like = calibration.model.get_parameter(name).detach()
        quotas = [
            Quota(
                name=name,
                facts=calibration.targets[name],
                like=like,
                granularity=settings.granularity,
                count=count,
                groups=len(rows),
            )
            for count in counts
        ]
        errors = trial_errors(rows, hessians, quotas, damping=damping, block=settings.block, importance=weigh)
        found[name] = [
            (
                1 - count / sizes[name],
                error / (1 - min(error / energy, 1 - 1e-6)),
            )  # one that says nothing is no bargain
            for count, error in zip(counts, errors, strict=True)
        ]

    calibration.curves(look, 1 - around)
    return found


def _weighed(delta: Tensor, hessians: list[Tensor], weigh: Tensor) -> float:
    return sum(
        float((rows_of_rise(d.to(torch.float64), h) * w).sum()) for d, h, w in zip(delta, hessians, weigh, strict=True)
    )
