"""Names and options of a recipe, held against what Secateur has, without running anything of the user's."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from secateur.allocations.uniform import Uniform
from secateur.errors import SecateurError, UnknownName
from secateur.names import allocation_of, budget_of, find, granularity_of, names_in
from secateur.protocols import WeightCost
from secateur.recipe.inputs import is_dotted
from secateur.recipe.wording import Problem, Problems, lines_of

__all__ = [
    "check_bias",
    "check_budget",
    "check_build",
    "check_needs",
    "check_options",
    "check_place",
    "check_scope",
    "method_named",
    "pattern_named",
    "pattern_sparsity",
    "schedule_named",
    "works_by_name",
]

# of methods of their own: what other keys say, or nobody
_SAID = ("allocation", "granularity", "ignore", "include_bias", "seed", "progress", "round_to", "fallback")


def method_named(name: str) -> Any:
    """The criterion class behind ``name``, or the method that `secateur.prune` takes by it; dotted paths are left for later and give ``object``.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in names_in("methods"):
        return object if is_dotted(name) else _found("criteria", name)
    found = find("methods", name)
    if not works_by_name(found):
        raise ValueError(
            f"{name!r} is a method with a training loop or parts of its own, which recipes do not run: use sc.methods in Python; here a criterion is "
            f"needed ({', '.join(names_in('criteria'))}) or one of {', '.join(_by_name())}"
        )
    return found


def works_by_name(thing: Any) -> bool:
    """Whether this is a method that does all by itself, in one shot."""
    return hasattr(thing, "by_name")


def _by_name() -> list[str]:
    return [name for name in names_in("methods") if works_by_name(find("methods", name))]


def check_place(method: str, granularity: str) -> None:
    """Refuse a granularity that a method of its own does not work at.

    Raises:
        ValueError: it is such a one.
    """
    wanted = getattr(method_named(method), "by_name", None)
    if wanted == "any" and granularity == "channel":
        raise ValueError(
            f"the method {method!r} sets weights to zero and keeps all widths; channels are ranked by a criterion"
        )
    if wanted == "any" and (pattern := pattern_named(granularity)) is not None:
        try:
            method_named(method)(granularity=pattern)
        except SecateurError as error:
            raise ValueError(str(error)) from None
    if wanted not in (None, "any", granularity):
        raise ValueError(f"the method {method!r} takes whole units out: write granularity = {wanted!r}")


def pattern_named(text: str) -> Any:
    """The granularity behind ``text``; dotted paths, and "channel", which needs the model, are left for later and give ``None``.

    Raises:
        ValueError: no granularity reads this text.
    """
    if is_dotted(text) or text == "channel":
        return None
    try:
        return granularity_of(text)
    except UnknownName as error:
        raise ValueError(str(error)) from None


def pattern_sparsity(text: str) -> float | None:
    """The sparsity that a granularity fixes by itself (N:M), if it does."""
    pattern = pattern_named(text) if text else None
    sizes = dict(getattr(pattern, "sizes", ()))
    quota = getattr(pattern, "quota", None)
    return 1 - quota / sizes["m"] if quota is not None and "m" in sizes else None


def check_budget(text: str, granularity: str, runtime: str, method: str) -> None:
    """Refuse a budget that is not understood, or that cannot be met like this.

    Raises:
        ValueError: it is one of these.
    """
    try:
        wanted, cost = budget_of(text)
    except UnknownName as error:
        raise ValueError(str(error)) from None
    if runtime == "secateur" and wanted.cost != "latency":
        raise ValueError(f"runtime = 'secateur' is a clock: write 'latency:50%', not {text!r}")
    own = method_named(method)
    keeps = getattr(own, "clocked", None)  # True: also in the engine's time
    if getattr(own, "by_name", "") == "any" and (keeps is None or (runtime == "secateur" and not keeps)):
        raise ValueError(
            f"the method {method!r} keeps no such budget: write sparsity, or method = 'layer_obs' or a criterion"
        )
    counts = isinstance(cost, WeightCost) and (cost.of_masks or works_by_name(own))
    if granularity != "channel" and runtime == "torch" and not counts:
        raise ValueError(
            f"{text!r} is counted on whole channels: write granularity = 'channel', or sparsity, or a budget such as 'energy:40%' (for a "
            "latency also runtime = 'secateur')"
        )


def check_bias(method: str) -> None:
    """Refuse biases where a method prunes none.

    Raises:
        ValueError: it is such a one.
    """
    found = method_named(method)
    if works_by_name(found) and not hasattr(found, "include_bias"):
        raise ValueError(f"the method {method!r} prunes no biases; leave this out")


def check_scope(name: str) -> None:
    """Refuse a scope that does not exist.

    Raises:
        ValueError: there is none of this name.
    """
    if not is_dotted(name):
        try:
            allocation_of(name, 0.5)
        except UnknownName as error:
            raise ValueError(str(error)) from None
        except TypeError:
            raise ValueError(f"{name!r} cannot be chosen by name; use global, layer, erk or lamp") from None


def schedule_named(table: dict[str, Any], *, resolve: bool = False) -> tuple[Any, dict[str, Any]]:
    """Split a schedule's table into its name (or, with ``resolve``, its class) and its fields.

    Raises:
        ValueError: no name, or none of the schedules.
    """
    rest = dict(table)
    name = rest.pop("name", "polynomial")
    if not isinstance(name, str):
        raise Problems([("name", f"must be text, not {name!r}")])
    if not is_dotted(name) or resolve:
        try:
            found = _found("schedules", name)
        except ValueError as error:
            raise Problems([("name", str(error))]) from None
        return (found if resolve else name), rest
    return name, rest


def check_options(method: str, options: dict[str, Any], *, alike: bool) -> None:
    """Hold ``options`` against what ``method`` has; ``alike``: whether one sparsity is said for all layers.

    Raises:
        Problems: see `check_build`.
    """
    thing = method_named(method)
    rest = {"allocation": Uniform(sparsity=0.5) if alike else None} if works_by_name(thing) else {}
    check_build(thing, options, **rest)


def check_needs(method: str, options: Mapping[str, Any], task: Mapping[str, Any]) -> None:
    """Refuse a task that a method of its own cannot work with.

    Raises:
        Problems: what it lacks.
    """
    if is_dotted(method) or getattr(method_named(method), "by_name", None) != "any":
        return
    curvature = options.get("curvature", getattr(method_named(method), "curvature", ""))
    asked = {"batches": True, "loss": curvature == "empirical", "evaluate": "floor" in options}
    lacking = [key for key, needed in asked.items() if needed and task.get(key) is None]
    if lacking:
        raise Problems(
            [(key, f"missing; the method {method!r} needs it, e.g. {key} = 'mydata:{key}'") for key in lacking]
        )


def check_build(thing: Any, options: dict[str, Any], **rest: Any) -> None:
    """Hold ``options`` against the fields of ``thing``, with strict types, and try to construct it with the ``rest``.

    Raises:
        Problems: unknown options, missing ones, wrong types, impossible values; all of them.
    """
    problems = _misfits(thing, options) if is_dataclass(thing) else []
    wrong = {key.partition(".")[0] for key, _ in problems}
    try:
        thing(**{key: value for key, value in options.items() if key not in wrong}, **rest)
    except (ValueError, UnknownName) as error:
        problems.append(("", str(error)))
    except TypeError as error:  # a field is missing, which is among the problems already, or a stranger's signature
        problems += [] if problems else [("", str(error))]
    if problems:
        raise Problems(problems)


def _misfits(thing: Any, options: dict[str, Any]) -> list[Problem]:
    said = _SAID if works_by_name(thing) else ()
    hints, known = get_type_hints(thing), [f for f in fields(thing) if f.init and f.name not in said]
    needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    types: Any = {f.name: (hints[f.name], ... if f.name in needed else None) for f in known}
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        create_model("Options", __config__=config, **types)(**options)
    except ValidationError as error:
        return lines_of(error, lambda _: [f.name for f in known])
    return []


def _found(folder: str, name: str) -> Any:
    try:
        return find(folder, name)
    except UnknownName as error:
        raise ValueError(str(error)) from None
