"""The bookkeeping of ADMM in training: a copy Z of the weights that keeps the constraint, and the scaled dual U that pulls W towards it.

    min over W of  f(W) + sum rho/2 |W - Z + U|^2        some steps of the user's optimizer      (Zhang et al. 2018, eq. 5; squared norm)
    Z <- Proj(W + U)                                                                             (eq. 7)
    U <- U + W - Z                                                                               (eq. 4)

    primal residual |W - Z| / |W|;     dual residual rho |Z - Z_before| / |W|                    (Boyd et al. 2011, section 3.3)

Z starts as Proj(W), U at zero. When rho grows by c, U shrinks by c, since U is the dual divided by rho (Boyd, section 3.4.1).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.masks import Masks
from secateur.quantising import to_levels

__all__ = ["Splitting"]


class Splitting:
    """Z, U and the penalty.

    Args:
        model: in training.
        names: the parameters that are split.
        rho: the first weight of the penalty.
        bits: levels that Z keeps as well; None: any value.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], *, rho: float, bits: int | None = None) -> None:
        self.rho, self.bits = rho, bits
        self._parameters = {name: model.get_parameter(name) for name in names}
        self.z = {name: p.detach().clone().float() for name, p in self._parameters.items()}
        self.u = {name: torch.zeros_like(z) for name, z in self.z.items()}
        self._targets = dict(self.z)

    def shifted(self) -> dict[str, Tensor]:
        """``W + U``, what is projected."""
        return {name: p.detach().float() + self.u[name] for name, p in self._parameters.items()}

    def weights(self) -> dict[str, Tensor]:
        """``W``."""
        return {name: p.detach() for name, p in self._parameters.items()}

    def begin(self, masks: Masks) -> None:
        """``Z = W`` where ``masks`` keep it, ``U = 0``."""
        self.u = {name: torch.zeros_like(z) for name, z in self.z.items()}
        self.z = self._allowed(self.shifted(), masks)
        self._aim()

    def update(self, masks: Masks) -> dict[str, float]:
        """The Z-step and the dual step; returns the residuals."""
        before, shifted = self.z, self.shifted()
        self.z = self._allowed(shifted, masks)
        self.u = {name: shifted[name] - self.z[name] for name in self.z}  # U + W - Z
        self._aim()
        size = max(_norm(self.weights()), 1e-30)
        apart = {name: p - self.z[name] for name, p in self.weights().items()}
        moved = {name: self.z[name] - before[name] for name in self.z}
        return {"rho": self.rho, "primal": _norm(apart) / size, "dual": self.rho * _norm(moved) / size}

    def strengthen(self, factor: float) -> None:
        """Multiply rho; the scaled dual shrinks alike."""
        if factor != 1:
            self.rho *= factor
            self.u = {name: u / factor for name, u in self.u.items()}
            self._aim()

    def penalty(self) -> Tensor:
        """``rho/2 |W - Z + U|^2``, to add to the loss."""
        terms = [(p.float() - self._targets[name]).square().sum() for name, p in self._parameters.items()]
        total = sum((one.to(terms[0].device) for one in terms[1:]), terms[0])
        return self.rho / 2 * total

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"rho": self.rho, "z": dict(self.z), "u": dict(self.u)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off."""
        self.rho = float(state["rho"])
        self.z = {name: state["z"][name].to(z.device).clone() for name, z in self.z.items()}
        self.u = {name: state["u"][name].to(u.device).clone() for name, u in self.u.items()}
        self._aim()

    def _allowed(self, values: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        kept = {name: value.masked_fill(~masks[name].to(value.device), 0) for name, value in values.items()}
        return kept if self.bits is None else {name: to_levels(value, self.bits) for name, value in kept.items()}

    def _aim(self) -> None:
        self._targets = {name: self.z[name] - self.u[name] for name in self.z}


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))
