"""Results as values: what a model costs (`Profile`), what pruning changed (`Report`), and what comes back (`Pruned`).

Nothing here measures or prints; `secateur.profiling` fills these in and `secateur.reporting` renders them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from secateur.masks import Masks

__all__ = ["Latency", "LayerProfile", "Profile", "Pruned", "Report"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Measured time of one forward pass, in milliseconds."""

    median_ms: float
    low_ms: float  # first quartile
    high_ms: float  # third quartile
    runs: int
    threads: int
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """One layer. ``macs`` and ``nonzero_macs`` are ``None`` where no example was run."""

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    params: int = 0
    nonzeros: int = 0
    macs: int | None = None
    nonzero_macs: int | None = None

    @property
    def sparsity(self) -> float:
        """The fraction of this layer's parameters that is exactly zero."""
        return 1 - self.nonzeros / self.params if self.params else 0.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one model costs. ``None`` means "not measured", never zero.

    Args:
        params, nonzeros: over all parameters, tied ones once.
        macs: multiply-accumulates of one forward pass on the example; ``nonzero_macs`` counts those with a non-zero weight.
        dense_bytes: the plain safetensors file; ``packed_bytes``: the file `secateur.save` writes; ``gzip_bytes``: the plain
            file after gzip. All in bytes.
        score: what ``Task.evaluate`` said; larger is better.
        uncounted: operations that may multiply but have no rule, named with their module; their MACs are missing above.
    """

    model: str
    params: int
    nonzeros: int
    layers: tuple[LayerProfile, ...] = ()
    macs: int | None = None
    nonzero_macs: int | None = None
    dense_bytes: int | None = None
    packed_bytes: int | None = None
    gzip_bytes: int | None = None
    latency: Latency | None = None
    score: float | None = None
    uncounted: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """The fraction of all parameters that is exactly zero."""
        return 1 - self.nonzeros / self.params if self.params else 0.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The receipt: a model before and after, and how it got there. ``print(report)`` shows it as a table.

    Args:
        method: what was done, in words a reader can repeat it from.
        settings: the same as data.
        notes: what the reader should know: emptied layers, weights left alone, things not measured and why.
        controls: other methods at the same sparsity, name to score.
    """

    before: Profile
    after: Profile
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    controls: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON-ready values."""
        return asdict(self)

    def __str__(self) -> str:
        from secateur.reporting.terminal import render_text  # a door: rendering stands above values

        return render_text(self)


@dataclass(frozen=True)
class Pruned:
    """What every method returns: a new model, the masks on the ORIGINAL parameter names, and the receipt."""

    model: nn.Module
    masks: Masks
    report: Report
