"""The primal-dual search of ECC: widths, multipliers of the widths and one of the budget (Yang, Zhu & Liu 2019, "ECC", CVPR, section 3.2).

    min over W, s  max over y, z >= 0 of   loss(W) + sum y_g (r_g - s_g) + z (E(s)/B - 1)
                                         + rho/2 (sum [r_g - s_g]_+)^2 + rho/2 [E(s)/B - 1]_+^2       r: the fraction of units alive in W

    s falls along the gradient (clipped to norm 1, downwards only, as in the authors' code);  z <- [z + rho (E(s)/B - 1)]_+;
    y <- [y + rho (r - s)]_+;   a unit dies when its share of its group's sum of squares is below  pull * (y + rho [rank - s]_+)

A group whose units are all large keeps them, its y rises, and its s stops falling: the budget is taken elsewhere. Widths are fractions of the full
ones and the energy one of the budget, so one set of constants fits networks of all sizes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.pricing import Pricing

__all__ = ["PrimalDual"]


class PrimalDual:
    """Widths under a budget.

    Args:
        pricing: the cost by units left.
        limit: what it may be, in the pricing's unit.
        rho: of both augmented terms and dual steps.
        rate: how far all widths together move in one step, as a fraction of the full ones.
        pull: see above.
        least: units that stay in every group at least.
    """

    def __init__(self, pricing: Pricing, limit: float, *, rho: float, rate: float, pull: float, least: int) -> None:
        self.pricing, self.limit, self.rho, self.rate, self.pull = pricing, limit, rho, rate, pull
        self.full = dict(pricing.units)
        self._least = {name: min(least, units) for name, units in self.full.items()}
        self.s = {name: float(units) for name, units in self.full.items()}
        self.y = dict.fromkeys(self.full, 0.0)
        self.z = 0.0

    def excess(self, counts: Mapping[str, float] | None = None) -> float:
        """By what fraction of the budget these counts (None: ``s``) are above it."""
        return self.pricing(self.s if counts is None else counts) / self.limit - 1  # type: ignore[arg-type]

    def step(self, alive: Mapping[str, int]) -> None:
        """The steps of s, z and y, for as many units alive."""
        over = self.excess()
        force = self.rho * max(0.0, over) + self.z
        behind = sum(max(0.0, alive[name] - self.s[name]) / units for name, units in self.full.items())
        slopes = self.pricing.savings(self.s)  # type: ignore[arg-type]
        gradient = {
            name: force * slopes[name] * units / self.limit
            - self.y[name]
            - (self.rho * behind if alive[name] > self.s[name] else 0.0)
            for name, units in self.full.items()
        }
        size = max(1.0, sum(g * g for g in gradient.values()) ** 0.5)
        for name, units in self.full.items():
            down = max(0.0, self.rate * gradient[name] / size) * units
            self.s[name] = max(float(self._least[name]), self.s[name] - down)
        self.z = max(0.0, self.z + self.rho * self.excess())
        for name, units in self.full.items():
            self.y[name] = max(0.0, self.y[name] + self.rho * (alive[name] - int(self.s[name])) / units)

    def survivors(self, energies: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The proximal step: which units stay, by their sums of squares; ``floor(s)`` of every group at least, and what is dead stays so."""
        found = {}
        for name, energy in energies.items():
            shares = energy / energy.sum().clamp(min=1e-300)
            order = torch.argsort(shares, descending=True, stable=True)
            ranks = torch.empty_like(order)
            ranks[order] = torch.arange(len(order))
            width = int(self.s[name])
            beyond = (ranks - width + 1).clamp(min=0) / len(order)
            threshold = self.pull * (self.y[name] + self.rho * beyond)
            found[name] = (energy > 0) & ((ranks < width) | (shares * len(order) >= threshold))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"s": dict(self.s), "y": dict(self.y), "z": self.z}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off."""
        self.s, self.y, self.z = dict(state["s"]), dict(state["y"]), float(state["z"])
