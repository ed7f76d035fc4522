"""The table ``[prune]`` of a recipe: what to remove."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from secateur.recipe.inputs import is_dotted
from secateur.recipe.options import (
    check_bias,
    check_budget,
    check_options,
    check_place,
    check_scope,
    method_named,
    pattern_named,
    pattern_sparsity,
)
from secateur.recipe.table import Options, Sparsity, Table, Texts

__all__ = ["PruneSection"]

_FIND_IT_OUT = ("obs", "data_free")  # how much leaves, by a stop rule or a cut-off


class PruneSection(Table):
    """What to remove; the arguments of `secateur.prune` (``options``: of the criterion or method), and ``recalibrate`` to refresh batch-norm statistics afterwards.

    ``round_to``, ``heads``, ``norms``, ``repair``, ``fallback`` and ``cost_weight`` are for ``granularity = "channel"``.
    """

    method: str = "magnitude"
    granularity: Annotated[str, Field(validate_default=True)] = "unstructured"
    runtime: Literal["torch", "secateur"] = "torch"
    budget: Annotated[str | None, Field(validate_default=True)] = None
    sparsity: Annotated[Sparsity | None, Field(validate_default=True)] = None
    scope: str = "global"
    overrides: dict[str, Sparsity] = {}  # noqa: RUF012  # pydantic copies it
    ignore: Texts = ()
    min_kept: Annotated[int, Field(ge=0)] = 0
    include_bias: bool | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    recalibrate: bool = False
    round_to: Annotated[int, Field(ge=1)] | None = None
    heads: Literal["whole", "inside"] = "whole"
    norms: Literal["hold", "shrink"] = "hold"
    repair: bool = False
    fallback: Literal["graph"] | None = None
    cost_weight: Annotated[float, Field(ge=0)] = 0.0
    options: Annotated[Options, Field(validate_default=True)] = {}  # noqa: RUF012

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

    @field_validator("include_bias")
    @classmethod
    def _bias(cls, wanted: bool | None, info: ValidationInfo) -> bool | None:
        if wanted:
            check_bias(info.data.get("method", "magnitude"))
        return wanted

    @field_validator("options")
    @classmethod
    def _options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        method = info.data.get("method", "")
        if method and not is_dotted(method):
            alike = not info.data.get("overrides") and pattern_sparsity(info.data.get("granularity", "")) is None
            check_options(method, options, alike=alike)
        amounts = [
            info.data.get("sparsity", 0),
            info.data.get("budget", 0),
            options.get("floor"),
            options.get("most_rise"),
        ]
        if method == "obs" and all(amount is None for amount in amounts):
            raise ValueError("how much leaves? write sparsity under [prune], or floor or most_rise here")
        return options
