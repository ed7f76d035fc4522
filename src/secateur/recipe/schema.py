"""What a recipe may say: five tables, strict types, no unknown keys.

Every check that needs no code of the user's stands here. Fields are declared in the order in which their checks need one
another, and no check is skipped because another key is wrong, so that all mistakes are reported at once.
"""

from typing import Annotated, Any

import tomli_w
from pydantic import Field, ValidationInfo, field_validator

from secateur.protocols import LiveCriterion
from secateur.recipe.inputs import is_dotted
from secateur.recipe.options import check_build, check_needs, method_named, schedule_named, works_by_name
from secateur.recipe.prune_section import PruneSection
from secateur.recipe.table import Dotted, Inputs, Options, Table
from secateur.recipe.wording import Problems

__all__ = ["ModelSection", "OutputSection", "PruneSection", "Recipe", "TaskSection", "TrainSection"]


class ModelSection(Table):
    """Where the model comes from.

    Args:
        path: a function without arguments that returns the model, or the model itself.
        weights: a file with its trained weights: safetensors, one of Secateur's, or a ``state_dict`` saved by torch.
        example_inputs: shapes (``"1x3x224x224"``, ``"1x128:int64"``) or a dotted path; for MACs and latency.
    """

    path: Dotted
    weights: str | None = None
    example_inputs: Inputs = ()


class TaskSection(Table):
    """What the model is for; see `secateur.Task`. Each is a dotted path."""

    batches: Dotted | None = None
    loss: Dotted | None = None
    evaluate: Dotted | None = None


class TrainSection(Table):
    """Train while pruning; with this table pruning is gradual.

    Args:
        batches: training batches, a re-iterable or a function that returns a fresh iterator.
        schedule: ``name`` ("polynomial", "linear", "constant", "cyclic") and its fields.
        epochs: passes over the batches.
        optimizer: called with ``model.parameters()`` and ``optimizer_options``.
        seed: for initial weights, shuffling and dropout.
    """

    batches: Dotted
    schedule: Options
    epochs: Annotated[int, Field(ge=1)] = 1
    optimizer: Dotted = "torch.optim:AdamW"
    optimizer_options: Options = {}  # noqa: RUF012  # pydantic copies it
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, schedule: dict[str, Any]) -> dict[str, Any]:
        name, fields = schedule_named(schedule)
        if not is_dotted(name):
            check_build(schedule_named(schedule, resolve=True)[0], fields)
        return schedule


class OutputSection(Table):
    """What to write: the pruned model (one safetensors file), the receipt as JSON, the receipt as a page."""

    model: str | None = None
    report: str | None = None
    html: str | None = None


class Recipe(Table):
    """A whole recipe."""

    model: ModelSection
    prune: PruneSection
    task: Annotated[TaskSection, Field(validate_default=True)] = TaskSection()
    train: Annotated[TrainSection | None, Field(validate_default=True)] = None
    output: OutputSection = OutputSection()

    @field_validator("prune")
    @classmethod
    def _prune(cls, prune: PruneSection, info: ValidationInfo) -> PruneSection:
        model = info.data.get("model")
        if model is None or model.example_inputs:
            return prune
        if prune.granularity == "channel":
            text = "the model is run once to see which channels are coupled"
            raise Problems([("granularity", f"{text}: add example_inputs = '1x3x224x224' to [model]")])
        if prune.budget:
            text = f"the model is run once to see what {prune.budget!r} leaves"
            raise Problems([("budget", f"{text}: add example_inputs = '1x3x224x224' to [model]")])
        return prune

    @field_validator("task")
    @classmethod
    def _task(cls, task: TaskSection, info: ValidationInfo) -> TaskSection:
        if "prune" in info.data:
            check_needs(info.data["prune"].method, info.data["prune"].options, task.model_dump())
        return task

    @field_validator("train")
    @classmethod
    def _train(cls, train: TrainSection | None, info: ValidationInfo) -> TrainSection | None:
        task, pruning = info.data.get("task"), info.data.get("prune")
        if train is not None and task is not None and task.loss is None:
            raise ValueError("training needs a loss: add loss = 'package.module:function' to [task]")
        if train is not None and pruning is not None and pruning.granularity == "channel":
            raise ValueError("channels leave in one shot: drop this table, and train the narrowed network afterwards")
        if train is not None and pruning is not None and pruning.budget:
            raise ValueError("a schedule needs sparsity in [prune] instead of a budget; or drop this table")
        name = "" if pruning is None or is_dotted(pruning.method) else pruning.method
        if train is not None and name and works_by_name(method_named(name)):
            raise ValueError(f"{name!r} works in one shot: drop this table, and train what comes out with sc.hold")
        if train is None and name and issubclass(method_named(name), LiveCriterion):
            raise ValueError(f"missing; the method {name!r} is gathered in training, so it needs this table")
        return train

    def to_toml(self) -> str:
        """Write the recipe down; what stands at its default is left out."""
        return tomli_w.dumps(self.model_dump(exclude_defaults=True, exclude_none=True, mode="python"))
