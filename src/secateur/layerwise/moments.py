"""Second moments of what layers take in: Hessians of layer-wise quadratics, summed up batch by batch.

    H = 1/n sum_j x_j x_j^T,    C = 1/n sum_j x_j x'_j^T   (x: dense network, x': as pruned so far),    means for the bias

Sums are float64 up to 4096 features and float32 beyond; each batch's product is made in the type of the data.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from secateur.errors import BadCalibration

__all__ = ["Moments"]

_WIDE = 4096


@final
@dataclass(eq=False)
class Moments:
    """The moments of one weight, ``[groups, features, features]``; ``now`` is what it takes in, ``before`` what it took in when dense."""

    name: str
    split: bool = False  # whether the moments of every other batch are kept apart too
    samples: int = 0
    gram: Tensor | None = None  # sum of now now^T
    cross: Tensor | None = None  # sum of before now^T
    now: Tensor | None = None  # sum of now, [groups, features]
    before: Tensor | None = None
    low: Tensor | None = None  # of each feature, [groups, features]
    high: Tensor | None = None
    odd: "Moments | None" = None  # of the odd batches alone
    paired: bool = True  # whether the dense samples are the same ones; where they are not, they are not looked at
    seen: int = 0  # samples that there were, of which ``samples`` were taken

    @property
    def groups(self) -> int:
        """Groups of rows with inputs of their own."""
        assert self.gram is not None
        return len(self.gram)

    def add(self, x: Tensor, dense: Tensor | None = None, *, odd: bool = False) -> None:
        """Add samples, ``[groups, features, samples]`` each; ``odd``: of an odd batch.

        Raises:
            BadCalibration: a number is NaN or infinite.
        """
        x = x.detach() if x.element_size() >= 4 else x.detach().float()
        total = x.sum(2)
        if not bool(torch.isfinite(total.sum())):
            raise BadCalibration(
                f"{self.name!r} takes in NaN or infinite numbers on the calibration data (after {self.samples:,} good samples): "
                "check the batches of the task, and that the network runs on them in this type"
            )
        low, high = x.aminmax(dim=2)
        self.low = low if self.low is None else self.low.minimum(low)
        self.high = high if self.high is None else self.high.maximum(high)
        if x.dtype == torch.float32 and x.device.type != "mps" and _far_from_zero(x, total):
            x = x.double()  # a small spread around a large mean drowns in float32 squares
            total = x.sum(2)
        gram = x @ x.mT
        self._take(x.shape[2], gram, total)
        if self.split and odd:
            self.odd = self.odd or Moments(self.name)
            self.odd._take(x.shape[2], gram, total)
        if dense is not None:
            dense = dense.detach().to(x.dtype)
            self.cross = self._sum(self.cross, dense @ x.mT)
            self.before = self._sum(self.before, dense.sum(2))

    def unpair(self) -> None:
        """The dense network sent other samples here: what it took in says nothing of these."""
        self.paired, self.cross, self.before = False, None, None

    def _take(self, samples: int, gram: Tensor, total: Tensor) -> None:
        self.samples += samples
        self.gram = self._sum(self.gram, gram)
        self.now = self._sum(self.now, total)

    def _sum(self, total: Tensor | None, part: Tensor) -> Tensor:
        wide = torch.float64 if part.shape[-1] <= _WIDE and part.device.type != "mps" else torch.float32
        return part.to(wide, copy=True) if total is None else total.add_(part)

    def hessian(self, group: int, *, centred: bool = False) -> Tensor:
        """``E[x' x'^T]``, or their covariance where a bias takes up the mean."""
        assert self.gram is not None
        assert self.now is not None
        found = self.gram[group] / self.samples
        mean = self.now[group] / self.samples
        return found - torch.outer(mean, mean) if centred else found

    def halves(self, group: int, *, centred: bool = False) -> tuple[Tensor, Tensor]:
        """`hessian` of the even batches and of the odd ones."""
        assert self.odd is not None
        odd, share = self.odd.hessian(group), self.odd.samples / self.samples
        even = (self.hessian(group) - share * odd) / (1 - share)
        if not centred:
            return even, odd
        one, all_ = self.odd.means(group)[0], self.means(group)[0]
        other = (all_ - share * one) / (1 - share)
        return even - torch.outer(other, other), odd - torch.outer(one, one)

    def crossed(self, group: int, *, centred: bool = False) -> Tensor:
        """``E[x x'^T]``, or the covariance."""
        assert self.cross is not None
        assert self.now is not None
        assert self.before is not None
        found = self.cross[group] / self.samples
        if centred:
            found = found - torch.outer(self.before[group] / self.samples, self.now[group] / self.samples)
        return found

    def means(self, group: int) -> tuple[Tensor, Tensor]:
        """The mean input now, and when dense (the same where that was not listened to)."""
        assert self.now is not None
        now = self.now[group] / self.samples
        return now, now if self.before is None else self.before[group] / self.samples

    def check_varied(self) -> None:
        """Refuse inputs that never change.

        Raises:
            BadCalibration: all samples are the same.
        """
        assert self.low is not None
        assert self.high is not None
        if torch.equal(self.low, self.high):
            same = "the same numbers every time" if self.high.any() else "nothing but zeros"
            raise BadCalibration(
                f"{self.name!r}, the first layer, takes in {same} ({self.samples:,} samples): constant calibration data say nothing about "
                "which weights matter; pass real inputs in Task(batches=...)"
            )


def _far_from_zero(x: Tensor, total: Tensor) -> bool:
    """Whether some feature's mean is a hundred times its spread or more."""
    square, mean = x.square().sum(2), total.square() / x.shape[2]
    return bool(((mean > 0) & (square - mean < 1e-4 * square)).any())
