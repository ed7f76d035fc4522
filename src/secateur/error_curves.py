"""Error curves of layers, measured by pruning each at a few sparsities on the dense network's inputs, and budgets found from them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.allocations.by_error import ByError
from secateur.allocations.global_ import Global
from secateur.allocations.priced import Priced
from secateur.budget_of_errors import Curve, cost_of, widths_of
from secateur.counting import kept_of
from secateur.layerwise.calibration import Calibration
from secateur.layerwise.surgery import Quota, operate
from secateur.quadratic import rows_of_rise
from secateur.units import Units

__all__ = ["budgeted", "error_curves", "priced_by_error"]

_STEPS = (-0.2, -0.1, 0.0, 0.1, 0.2)


def budgeted(calibration: Calibration, units: Units, allocation: Global | Priced | ByError) -> dict[str, int]:
    """Units that stay by parameter, of least total error, for what ``allocation`` spends; errors are weighed, also within layers, from here on."""
    calibration.weigh()
    if isinstance(allocation, Priced):
        allocation = priced_by_error(calibration, units, allocation)
    if isinstance(allocation, ByError):
        return dict(allocation(units))
    sizes = {name: units.count(name) for name in units}
    heard = {name: sizes[name] for name in sizes if calibration.hears(name)}
    silent = {name: kept_of(allocation.sparsity, sizes[name]) for name in sizes if name not in heard}
    curves = error_curves(calibration, heard, allocation.sparsity)
    least = max(1, allocation.min_kept) * len(heard)  # a weight of each stays, even where fewer were asked for
    budget = max(least, kept_of(allocation.sparsity, units.total) - sum(silent.values()))
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
        weigh = calibration.importance[name].view(len(rows), -1)
        settings = calibration.settings
        energy = max(_weighed(rows, hessians, weigh), 1e-300)
        curve = []
        for sparsity in at:
            count = kept_of(sparsity, sizes[name])
            quota = Quota(
                name=name,
                facts=calibration.targets[name],
                like=calibration.model.get_parameter(name).detach(),
                granularity=settings.granularity,
                count=count,
                groups=len(rows),
            )
            done = operate(rows, hessians, quota, refit=False, damping=damping, block=settings.block, importance=weigh)
            error = _weighed(rows - done.weights.to(rows.dtype), hessians, weigh)
            lost = min(error / energy, 1 - 1e-6)
            curve.append(
                (1 - count / sizes[name], error / (1 - lost))
            )  # a layer that says nothing any more is no bargain
        found[name] = curve

    calibration.curves(look, 1 - around)
    return found


def _weighed(delta: Tensor, hessians: list[Tensor], weigh: Tensor) -> float:
    return sum(
        float((rows_of_rise(d.to(torch.float64), h) * w).sum()) for d, h, w in zip(delta, hessians, weigh, strict=True)
    )
