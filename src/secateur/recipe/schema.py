"""What a recipe may say: five tables, strict types, no unknown keys.

Every check that needs no code of the user's stands here. Fields are declared in the order in which their checks need one
another, and no check is skipped because another key is wrong, so that all mistakes are reported at once.
"""

from typing import Annotated, Any, Literal, TypeAlias

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from secateur.counting import check_sparsity
from secateur.protocols import LiveCriterion
from secateur.recipe.inputs import check_input, is_dotted
from secateur.recipe.options import (
    check_budget,
    check_build,
    check_options,
    check_place,
    check_scope,
    method_named,
    pattern_named,
    pattern_sparsity,
    schedule_named,
    works_by_name,
)
from secateur.recipe.wording import Problems

__all__ = ["ModelSection", "OutputSection", "PruneSection", "Recipe", "TaskSection", "TrainSection"]


def _is_dotted(text: str) -> str:
    if not is_dotted(text):
        raise ValueError(f"{text!r} is no dotted path; write package.module:name, e.g. mypkg.nets:make")
    return text


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _one_or_several(value: object) -> object:
    return (value,) if isinstance(value, str) else _as_tuple(value)


Scalar: TypeAlias = bool | int | float | str
Options: TypeAlias = dict[str, Scalar | Annotated[tuple[Scalar, ...], BeforeValidator(_as_tuple)]]
Dotted = Annotated[str, AfterValidator(_is_dotted)]
Sparsity = Annotated[float, AfterValidator(check_sparsity)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_several)]
Inputs = Annotated[tuple[Annotated[str, AfterValidator(check_input)], ...], BeforeValidator(_one_or_several)]


_FIND_IT_OUT = ("obs", "data_free")  # how much leaves, by a stop rule or a cut-off


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSection(_Table):
    """Where the model comes from.

    Args:
        path: a function without arguments that returns the model, or the model itself.
        weights: a file with its trained weights: safetensors, one of Secateur's, or a ``state_dict`` saved by torch.
        example_inputs: shapes (``"1x3x224x224"``, ``"1x128:int64"``) or a dotted path; for MACs and latency.
    """

    path: Dotted
    weights: str | None = None
    example_inputs: Inputs = ()


class TaskSection(_Table):
    """What the model is for; see `secateur.Task`. Each is a dotted path."""

    batches: Dotted | None = None
    loss: Dotted | None = None
    evaluate: Dotted | None = None


class PruneSection(_Table):
    """What to remove; the arguments of `secateur.prune` (``options``: of the criterion or method), and ``recalibrate`` to refresh batch-norm statistics afterwards.

    ``round_to``, ``heads``, ``norms``, ``repair``, ``fallback`` and ``cost_weight`` are for ``granularity = "channel"``.
    """

    method: str = "magnitude"
    granularity: Annotated[str, Field(validate_default=True)] = "unstructured"
    runtime: Literal["torch", "secateur"] = "torch"
    budget: Annotated[str | None, Field(validate_default=True)] = None
    sparsity: Annotated[Sparsity | None, Field(validate_default=True)] = None
    scope: str = "global"
    overrides: dict[str, Sparsity] = {}
    ignore: Texts = ()
    min_kept: Annotated[int, Field(ge=0)] = 0
    include_bias: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    recalibrate: bool = False
    round_to: Annotated[int, Field(ge=1)] | None = None
    heads: Literal["whole", "inside"] = "whole"
    norms: Literal["hold", "shrink"] = "hold"
    repair: bool = False
    fallback: Literal["graph"] | None = None
    cost_weight: Annotated[float, Field(ge=0)] = 0.0
    options: Options = {}

    @field_validator("method")
    @classmethod
    def _method(cls, name: str) -> str:
        method_named(name)
        return name

    @field_validator("granularity")
    @classmethod
    def _granularity(cls, text: str, info: ValidationInfo) -> str:
        pattern_named(text)
        check_place(info.data.get("method", "magnitude"), text)
        return text

    @field_validator("scope")
    @classmethod
    def _scope(cls, name: str) -> str:
        check_scope(name)
        return name

    @field_validator("budget")
    @classmethod
    def _budget(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None:
            read = info.data.get
            check_budget(text, read("granularity", "channel"), read("runtime", "torch"), read("method", "magnitude"))
        elif info.data.get("runtime") == "secateur":
            raise ValueError("missing; runtime says in whose time it is kept, e.g. budget = 'latency:50%'")
        return text

    @field_validator("sparsity")
    @classmethod
    def _sparsity(cls, sparsity: float | None, info: ValidationInfo) -> float | None:
        fixed, budget = pattern_sparsity(info.data.get("granularity", "")), info.data.get("budget")
        if sparsity is not None and budget is not None:
            raise ValueError(f"the budget {budget!r} says how much leaves; drop one of the two")
        needed = {"granularity", "budget"} <= set(info.data) and info.data.get("method") not in _FIND_IT_OUT
        if sparsity is None and fixed is None and budget is None and needed:
            raise ValueError("missing; write the fraction that is removed, e.g. sparsity = 0.9")
        if sparsity is not None and fixed is not None and abs(sparsity - fixed) > 1e-9:
            raise ValueError(
                f"the granularity {info.data['granularity']!r} removes {fixed:g}; leave sparsity out or write {fixed:g}"
            )
        return sparsity

    @field_validator("round_to", "heads", "norms", "repair", "fallback", "cost_weight")
    @classmethod
    def _for_channels(cls, value: float | str | None, info: ValidationInfo) -> float | str | None:
        if info.data.get("granularity", "channel") != "channel":
            raise ValueError("only granularity = 'channel' narrows the network; leave this out")
        return value

    @field_validator("options")
    @classmethod
    def _options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        method = info.data.get("method", "")
        if method and not is_dotted(method):
            check_options(method, options)
        return options


class TrainSection(_Table):
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
    optimizer_options: Options = {}
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, schedule: dict[str, Any]) -> dict[str, Any]:
        name, fields = schedule_named(schedule)
        if not is_dotted(name):
            check_build(schedule_named(schedule, resolve=True)[0], fields)
        return schedule


class OutputSection(_Table):
    """What to write: the pruned model (one safetensors file), the receipt as JSON, the receipt as a page."""

    model: str | None = None
    report: str | None = None
    html: str | None = None


class Recipe(_Table):
    """A whole recipe."""

    model: ModelSection
    prune: PruneSection
    task: TaskSection = TaskSection()
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
