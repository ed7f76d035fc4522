"""Results as values: what a model costs (`Profile`), what pruning changed (`Report`), and what comes back (`Pruned`).

Nothing here measures or prints; `secateur.profiling.profile` fills these in and `secateur.reporting` renders them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from secateur.errors import BadFile
from secateur.masks import Masks
from secateur.structure import Structure

__all__ = ["ChannelGroup", "HeldChannels", "Latency", "LayerProfile", "Profile", "Pruned", "Report"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Measured time of one forward pass, in milliseconds."""

    median_ms: float
    low_ms: float  # first quartile
    high_ms: float  # third quartile
    runs: int
    threads: int
    device: str = "cpu"

    def overlaps(self, other: "Latency") -> bool:
        """Whether the middle halves of the two measurements share any time: then the difference is within noise."""
        return self.low_ms <= other.high_ms and other.low_ms <= self.high_ms


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """One module that holds parameters itself, or multiplies itself.

    Args:
        name: its path in the model ("" for the model itself).
        kind: its class.
        shape: of its largest weight; () if it has none.
        params, nonzeros: its own parameters; a tied weight counts where it comes first.
        macs, nonzero_macs: ``None`` where no example was run.
    """

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
        dense_bytes: the plain safetensors file; ``packed_bytes``: the file `secateur.save` writes of the model alone; ``gzip_bytes``: the plain
            file after gzip. All in bytes.
        score: what ``Task.evaluate`` said; larger is better.
        uncounted: operations that may multiply but have no rule, named with their module; their MACs are missing above.
        inputs: the example that MACs and latency are for, in words.
        notes: what was not measured and how to have it measured.
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
    inputs: str = ""
    notes: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """The fraction of all parameters that is exactly zero."""
        return 1 - self.nonzeros / self.params if self.params else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain JSON-ready values."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Profile":
        """Read what `to_dict` wrote.

        Raises:
            BadFile: a field is missing or of the wrong type.
        """
        return _read(cls, data)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        from secateur.reporting.terminal import render_text  # a door: rendering stands above values

        return render_text(self)


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that leave together.

    Args:
        name: the weight that makes them.
        kind: "channel", "hidden", "head", ...
        units, kept: how many there were, and are.
        span: channels of one unit: 64 for heads of 64 channels.
        params: how many weights hang on all of its units.
        makers, readers: the layers whose output, or input, these channels are.
        others: what goes along, such as norms.
    """

    name: str
    kind: str = "channel"
    units: int = 0
    kept: int = 0
    span: int = 1
    params: int = 0
    makers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HeldChannels:
    """Channels that may not leave for one reason: the layers that make them, and how many each."""

    reason: str
    layers: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """The receipt: a model before and after, and how it got there. ``print(report)`` shows it as a table.

    Args:
        method: what was done, in words a reader can repeat it from.
        settings: the same as data.
        notes: what the reader should know: emptied layers, weights left alone, things not measured and why.
        controls: other methods at the same sparsity, name to score.
        groups, held: after channel pruning, which channels leave together, and which may not and why.
    """

    before: Profile
    after: Profile
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    controls: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[ChannelGroup, ...] = ()
    held: tuple[HeldChannels, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON-ready values: every number is finite, whatever is not plain is spelled out as text."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """The report as JSON text; `from_dict` of it gives the report again."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """Read what `to_dict` wrote; fields that a later version added are passed over.

        Raises:
            BadFile: a field is missing or of the wrong type.

        >>> small = Profile(model="Net", params=10, nonzeros=4)
        >>> report = Report(before=small, after=small, notes=("a",))
        >>> Report.from_dict(json.loads(report.to_json())) == report
        True
        """
        return _read(cls, data)  # type: ignore[no-any-return]

    @property
    def remarks(self) -> tuple[str, ...]:
        """All notes, those of both profiles included, each once."""
        return tuple(dict.fromkeys((*self.notes, *self.before.notes, *self.after.notes)))

    def __str__(self) -> str:
        from secateur.reporting.terminal import render_text  # a door: rendering stands above values

        return render_text(self)


@dataclass(frozen=True)
class Pruned:
    """What every method returns: a new model, masks on the ORIGINAL parameter names, the receipt, and how it was narrowed."""

    model: nn.Module
    masks: Masks
    report: Report
    structure: Structure | None = None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _read(kind: type[Any], data: Mapping[str, Any]) -> Any:
    from pydantic import TypeAdapter, ValidationError  # a third of the time `import secateur` would take

    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        raise BadFile(
            f"this is not a {kind.__name__.lower()} that Secateur wrote: at {where}, {first['msg'].lower()} "
            f"({error.error_count()} such problems); write it with to_dict() or to_json()"
        ) from error
