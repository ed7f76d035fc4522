"""The contract page: every role in the library, in one file.

A role is a shape, not a parent: a frozen dataclass with the right ``__call__`` plays it without importing anything from here.
The contract tests in ``tests/contracts`` hold every file of the role's folder, and any third party's object, to it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from secateur.facts import LayerFacts
from secateur.masks import Masks
from secateur.pricing import Part
from secateur.report import Pruned
from secateur.scores import Scores
from secateur.task import Task
from secateur.units import Units

__all__ = [
    "Allocation",
    "Cost",
    "Criterion",
    "Format",
    "Granularity",
    "LiveCriterion",
    "Run",
    "Schedule",
    "Targets",
    "Tracker",
    "TrainingMethod",
    "WeightCost",
]

Targets = Mapping[str, LayerFacts]  # the parameters that may be pruned, and how each is laid out


@runtime_checkable
class Criterion(Protocol):
    """How badly each weight would be missed. Leaves the model as it found it, gradients and mode included."""

    def __call__(self, model: nn.Module, targets: Targets, task: Task | None = None) -> Scores:
        """Score every parameter in ``targets``; larger means more worth keeping."""


class Tracker(Protocol):
    """Evidence gathered while a model trains."""

    def observe(self, model: nn.Module) -> None:
        """Look at weights and gradients; called after ``backward`` and before the weights move."""

    def scores(self) -> Scores:
        """The evidence so far."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off."""


@runtime_checkable
class LiveCriterion(Protocol):
    """A criterion that can only be had in training."""

    def track(self, model: nn.Module, targets: Targets) -> Tracker:
        """Begin to gather evidence."""


@runtime_checkable
class Granularity(Protocol):
    """What leaves together."""

    @property
    def quota(self) -> int | None:
        """How many units stay in every group, or ``None`` where an allocation decides."""

    def pool(self, scores: Scores) -> Units:
        """Add the evidence of each unit's weights and finish it once."""

    def spread(self, keep: Mapping[str, Tensor], scores: Scores) -> Masks:
        """Turn ``[group, unit]`` decisions into masks of the parameters' shapes."""


@runtime_checkable
class Allocation(Protocol):
    """How much where: the number of units that stay, per name."""

    def __call__(self, units: Units) -> Mapping[str, int]:
        """Decide for every name in ``units``; depends on nothing else, so it is deterministic."""


@runtime_checkable
class Cost(Protocol):
    """What people pay: parameters, bytes, multiply-accumulates, milliseconds, ..."""

    @property
    def unit(self) -> str:
        """What a number of it is called: "bytes", "ms", "" for plain counts."""

    def measure(self, models: Sequence[nn.Module], example_inputs: Any) -> list[float]:
        """What each model costs; side by side, where the machine could favour one."""

    def parts(self, model: nn.Module, example_inputs: Any) -> tuple[Part, ...]:
        """How the cost of ``model`` shrinks with its dimensions, exactly or nearly; for searching."""


@runtime_checkable
class WeightCost(Cost, Protocol):
    """A cost that single weights have, so that budgets make sense for masks."""

    @property
    def of_masks(self) -> bool:
        """Whether zeros alone are what people mean by such a budget; else they mean whole channels, unless a method has masks only."""

    @property
    def where(self) -> str:
        """By whose count, and where zeros pay: the end of a sentence."""

    def of_nonzeros(self, model: nn.Module, example_inputs: Any) -> float:
        """What ``model`` costs where zeros cost nothing."""

    def of_weights(
        self, model: nn.Module, example_inputs: Any
    ) -> tuple[float, Mapping[str, tuple[tuple[float, float], ...]]]:
        """What is spent whatever stays, and by name ``(how many weights, what each costs)``, the cheap ones first."""


@runtime_checkable
class Schedule(Protocol):
    """How much when."""

    @property
    def end_step(self) -> int:
        """The step after which masks stay as they are."""

    @property
    def regrows(self) -> bool:
        """Whether sparsity may fall again, so that removed weights come back."""

    def __call__(self, step: int, final: float) -> float:
        """The sparsity at ``step`` on the way to ``final``."""

    def updates_at(self, step: int) -> bool:
        """Whether masks are renewed at ``step``."""


@runtime_checkable
class Run(Protocol):
    """A method at work inside the user's own training loop."""

    def step(self) -> None:
        """Call once after every ``optimizer.step()``."""

    def penalty(self) -> Tensor:
        """A term to add to the loss; zero for methods that have none."""

    def finish(self) -> Pruned:
        """Check that the goal was reached, release the hooks, measure and report."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors and plain values only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off, bit for bit."""


@runtime_checkable
class TrainingMethod(Protocol):
    """A method that needs training."""

    def start(self, model: nn.Module, optimizer: Any) -> Run:
        """Begin on ``model``, in place, in step with ``optimizer``."""


@runtime_checkable
class Format(Protocol):
    """A way to write one tensor with zeros down. ``parts`` are what goes into the file."""

    def encode(self, tensor: Tensor) -> dict[str, Tensor] | None:
        """The parts, or ``None`` where this format cannot hold the tensor."""

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The tensor again, bit for bit. Raises ``BadFile`` on anything that `encode` cannot have written."""


Measure = Callable[[nn.Module], float]
