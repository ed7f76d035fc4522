"""How much of each layer leaves, found from the layers' errors by dynamic programming (as in SPDY; Frantar & Alistarh 2022).

minimise   sum_l  weight_l * error_l(sparsity_l)      subject to      sum_l price_l * kept_l(sparsity_l) <= budget
"""

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["cheapest_levels"]


def cheapest_levels(
    errors: Mapping[str, Sequence[float]], costs: Mapping[str, Sequence[float]], budget: float, *, bins: int = 4000
) -> dict[str, int]:
    """One level for each name, of least total error, with a total cost of at most ``budget``; -1 for all names where nothing fits.

    Args:
        errors, costs: of every level, by name.
        budget: of the costs.
        bins: steps into which the budget is divided; costs are rounded up to them, so that the budget is kept.

    >>> cheapest_levels({"a": [0.0, 1.0], "b": [0.0, 5.0]}, {"a": [10, 5], "b": [10, 5]}, 15)
    {'a': 1, 'b': 0}
    """
    least = np.zeros(bins + 1)
    taken: list[tuple[str, np.ndarray, list[int]]] = []
    size = budget / bins
    for name, own in errors.items():
        steps = [int(np.ceil(cost / size - 1e-9)) for cost in costs[name]]
        table = np.full((len(own), bins + 1), np.inf)
        for level, (error, step) in enumerate(zip(own, steps, strict=True)):
            if step <= bins:
                table[level, step:] = least[: bins + 1 - step] + error
        taken.append((name, table.argmin(0), steps))
        least = table.min(0)
    if not np.isfinite(least[bins]):
        return dict.fromkeys(errors, -1)
    place, found = bins, {}
    for name, choice, steps in reversed(taken):
        found[name] = int(choice[place])
        place -= steps[found[name]]
    return {name: found[name] for name in errors}


def counts_from_errors(*_: object) -> dict[str, int]:
    raise NotImplementedError
