"""Error curves of layers, measured by pruning each at a few sparsities on the dense network's inputs, and budgets found from them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.allocations.global_ import Global
from secateur.budget_of_errors import Curve, widths_of
from secateur.calibration import Calibration
from secateur.counting import kept_of
from secateur.importance import importance_of
from secateur.quadratic import rows_of_rise
from secateur.surgery import Quota, operate
from secateur.units import Units

__all__ = ["budgeted", "error_curves"]

_STEPS = (-0.2, -0.1, 0.0, 0.1, 0.2)


def budgeted(calibration: Calibration, units: Units, allocation: Global) -> dict[str, int]:
    """Units that stay by parameter, of least total error; the total is that of ``allocation``.

    Errors are weighed by what they count for the network (`secateur.importance`), also between the rows of a layer, from here on.
    """
    calibration.importance = importance_of(
        calibration.model, calibration.targets, calibration.task, calibration.batches, seed=calibration.settings.seed
    )
    sizes = {name: units.count(name) for name in units}
    heard = {name: size for name, size in sizes.items() if calibration.targets[name].module not in calibration.silent}
    silent = {name: kept_of(allocation.sparsity, sizes[name]) for name in sizes if name not in heard}
    curves = error_curves(calibration, heard, allocation.sparsity)
    budget = kept_of(allocation.sparsity, units.total) - sum(silent.values())
    prices = dict.fromkeys(heard, 1.0)
    found = widths_of(curves, heard, prices, budget, min_kept=max(1, allocation.min_kept))
    return {name: (found | silent)[name] for name in sizes}


def error_curves(calibration: Calibration, sizes: Mapping[str, int], around: float) -> dict[str, Curve]:
    """For every parameter ``(sparsity, error)`` near the sparsity ``around``, by one step of the solver "columns" each."""
    at = sorted({round(min(max(around + step, around / 2), 1 - (1 - around) / 3), 6) for step in _STEPS})
    found: dict[str, Curve] = {}

    def look(name: str, rows: Tensor, hessians: list[Tensor]) -> None:
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
            done = operate(
                rows, hessians, quota, refit=False, damping=settings.damping, block=settings.block, importance=weigh
            )
            error = _weighed(rows - done.weights.to(rows.dtype), hessians, weigh)
            lost = min(error / energy, 1 - 1e-6)
            curve.append(
                (1 - count / sizes[name], error / (1 - lost))
            )  # a layer that says nothing any more is no bargain
        found[name] = curve

    calibration.curves(look)
    return found


def _weighed(delta: Tensor, hessians: list[Tensor], weigh: Tensor) -> float:
    return sum(
        float((rows_of_rise(d.to(torch.float64), h) * w).sum()) for d, h, w in zip(delta, hessians, weigh, strict=True)
    )
