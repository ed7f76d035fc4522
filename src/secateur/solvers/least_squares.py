"""Refit what is left of a layer, so that it computes what the whole layer did, and no more than the data can tell.

    min over W'  E || W x - W' x' ||^2        =>     W' = W  E[x x'^T]  ( E[x' x'^T] + damping * mean diagonal )^-1

x is what the layer took in before, x' what it takes in now: fewer features, and already a little off where earlier layers shrank.

A layer of many features and few places fits those places and forgets the rest. So a `Correction` starts from the weights as they are,

    min over D, c  sum_t omega_t || r_t - D x'_t - c ||^2 + damping * || D ||^2,         r_t: what is missing of the output at place t

on one half of the data, and the damping is raised as long as the other half gets better; if neither half gains, it is no correction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from secateur.errors import BadCalibration

__all__ = ["Correction", "Moments", "correction", "refit", "refit_costs", "solve_right"]

_NO_NUMBERS = "the sums behind a least-squares fit are NaN or infinite"
_MOST = 1e2  # damping, as a fraction of the mean diagonal: beyond it nothing moves


def refit(weight: Tensor, cross: Tensor, gram: Tensor, *, damping: float = 1e-4) -> Tensor:
    """The weights ``[rows, kept]`` that do on x' what ``weight`` ``[rows, features]`` does on x.

    Args:
        weight: the layer as it was.
        cross: ``E[x x'^T]``, ``[features, kept]``.
        gram: ``E[x' x'^T]``, ``[kept, kept]``.
        damping: what is added to the diagonal of ``gram``, as a fraction of its mean; features that never fire stay solvable.

    >>> gram = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> refit(torch.tensor([[3.0, 5.0]]), gram[:, :1], gram[:1, :1], damping=0.0)  # independent features: the rest stays as it is
    tensor([[3.]])
    """
    return solve_right(weight.double() @ cross.double(), gram, damping=damping).to(weight.dtype)


def refit_costs(outgoing: Tensor, products: Tensor, removed: Tensor) -> Tensor:
    """What is lost with each unit that leaves, when those that stay are refitted each time; a part of all that is sent on.

    With the units in the order in which they stay longest, and ``products`` = L L^T, column k of L is what unit k gives beyond all
    units before it: the mean square of what only it sends on is ``|| outgoing^T L_k ||^2``. One factorisation for all counts.

    Args:
        outgoing: ``[units, rows]``, the weights that read each unit.
        products: ``E[x x^T]``, ``[units, units]``.
        removed: all units but one, in the order in which they leave.

    Returns:
        A cost for each of ``removed``, never less than the one before it.

    >>> refit_costs(torch.tensor([[1.0], [2.0], [2.0]]), torch.eye(3), torch.tensor([0, 1]))
    tensor([0.1111, 0.4444], dtype=torch.float64)
    """
    last = torch.ones(len(products), dtype=torch.bool)
    last[removed] = False
    order = torch.cat([last.nonzero().squeeze(1), removed.flip(0)])
    matrix = products.double()[order][:, order]
    lower = _factor(matrix, damping=0.0)  # likes are singular, and cost what little damping they need
    sent = (outgoing.double().to(lower)[order].t() @ lower).square().sum(0)
    total = sent.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return (sent[1:].flip(0) / total).cummax(0).values


def solve_right(right: Tensor, gram: Tensor, *, damping: float) -> Tensor:
    """``right @ (gram + damping * mean(diagonal) * I)^-1`` in float64; more damping is tried where that is not positive definite.

    Raises:
        BadCalibration: it holds NaN or infinity.
    """
    factor = _factor(gram.double(), damping=damping)
    if not bool(right.isfinite().all()):
        raise BadCalibration(_NO_NUMBERS)
    return torch.cholesky_solve(right.double().t(), factor).t()


def _factor(matrix: Tensor, *, damping: float) -> Tensor:
    """L with ``L L^T = matrix + damping * mean(diagonal) * I``, or the least damping beyond that it takes."""
    if not bool(matrix.isfinite().all()):
        raise BadCalibration(_NO_NUMBERS)
    mean = matrix.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix + damping * mean * eye)
    while failed:
        damping = max(10 * damping, 1e-8)
        factor, failed = torch.linalg.cholesky_ex(matrix + damping * mean * eye)
    return factor


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """What is added to a weight ``[rows, features]`` and to its bias ``[rows]``."""

    weight: Tensor
    bias: Tensor


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Sums over places, in float64: all that least squares needs to know.

    Args:
        gram: of the features, ``[features, features]``.
        cross: of what is missing with the features, ``[rows, features]``.
        features: their sum. missing: its sum. places: their weights' sum.
    """

    gram: Tensor
    cross: Tensor
    features: Tensor
    missing: Tensor
    places: Tensor

    @classmethod
    def of(cls, x: Tensor, missing: Tensor, omega: Tensor) -> "Moments":
        """Of features ``[features, places]``, what is missing ``[rows, places]``, and how much each place counts."""
        weighted = x * omega
        return cls(
            gram=weighted @ x.t(),
            cross=missing @ weighted.t(),
            features=weighted.sum(1),
            missing=(missing * omega).sum(1),
            places=omega.sum(),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(**{key: getattr(self, key) + getattr(other, key) for key in self.__dataclass_fields__})

    def solved(self, damping: float, *, bias: bool) -> Correction:
        """The best correction for these places; ``damping`` is a fraction of the mean diagonal."""
        if not bias:
            return Correction(
                weight=solve_right(self.cross, self.gram, damping=damping), bias=torch.zeros_like(self.missing)
            )
        mean = self.features / self.places
        gram, cross = self.gram - torch.outer(self.features, mean), self.cross - torch.outer(self.missing, mean)
        step = solve_right(cross, gram, damping=damping)
        return Correction(weight=step, bias=self.missing / self.places - step @ mean)

    def gain(self, made: Correction) -> float:
        """How much of the squared error a correction takes away at these places; negative: it adds to it."""
        step, shift = made.weight, made.bias
        linear = (step * self.cross).sum() + shift @ self.missing
        square = ((step @ self.gram) * step).sum() + 2 * shift @ (step @ self.features) + self.places * shift @ shift
        return float(2 * linear - square)


def correction(halves: Sequence[Moments], *, damping: float, bias: bool) -> Correction | None:
    """The correction of all places, as bold as each half of them proves right on the other; None if the other never gains."""
    one, other = halves
    best, gained = None, 0.0
    while damping <= _MOST:
        gain = other.gain(one.solved(damping, bias=bias)) + one.gain(other.solved(damping, bias=bias))
        if best is not None and gain <= gained:
            break
        if gain > gained:
            best, gained = damping, gain
        damping *= 10
    return None if best is None else (one + other).solved(best, bias=bias)
