"""The folder is the registry: ``"magnitude"`` is ``criteria/magnitude.py``, ``"erk"`` is ``allocations/erk.py``.

``"package.module:Thing"`` names anything anywhere, so third parties need no plug-in system. Strings are resolved here once, at
the door; inside the library there are only objects.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from secateur.budgets import Budget
from secateur.errors import NeedsTask, UnknownName
from secateur.protocols import Allocation, Cost, Criterion, Granularity, LiveCriterion

__all__ = [
    "allocation_of",
    "budget_of",
    "build",
    "criterion_of",
    "dotted",
    "find",
    "granularity_of",
    "names_in",
    "standing",
]

_SCOPES = {"layer": "uniform", "local": "uniform", "global": "global"}


def names_in(folder: str) -> list[str]:
    """Every name that ``folder`` ("criteria", "methods", ...) offers.

    >>> "magnitude" in names_in("criteria")
    True
    """
    package = importlib.import_module(f"secateur.{folder}")
    return sorted(module.name.rstrip("_") for module in pkgutil.iter_modules(package.__path__))


def dotted(path: str) -> Any:
    """Import ``"package.module:thing"``.

    Raises:
        UnknownName: the module or the thing does not exist.
    """
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the last two: an empty or a relative name
        raise UnknownName(f"{path!r}: cannot import {module_name!r} ({error}); is its folder on PYTHONPATH?") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UnknownName(f"{path!r}: module {module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    return found


def find(folder: str, name: str) -> Any:
    """The class behind ``name``: the first one that its file lists in ``__all__``.

    Raises:
        UnknownName: there is no such file; close names are suggested.
    """
    if ":" in name:
        return dotted(name)
    known = names_in(folder)
    if name not in known:
        raise UnknownName(
            f"{name!r} is none of the {folder}: {', '.join(known)}{_hint(name, known)} (yours: 'package.module:Thing')"
        )
    files = {module.name.rstrip("_"): module.name for module in _files(folder)}
    module = importlib.import_module(f"secateur.{folder}.{files[name]}")
    return getattr(module, module.__all__[0])


def build(thing: Any, options: Mapping[str, Any], what: str, *, more: Iterable[str] = ()) -> Any:
    """Construct ``thing`` from ``options``, refusing those it does not have; ``more`` names others that the caller takes himself.

    Raises:
        UnknownName: an option is not a field of it.
    """
    if is_dataclass(thing):
        known = [f.name for f in fields(thing) if f.init]
        for option in options:
            if option not in known:
                known += more
                raise UnknownName(
                    f"{what} has no option {option!r}; it has: {', '.join(known) or 'none'}{_hint(option, known)}"
                )
    return thing(**options)


def criterion_of(criterion: str | Criterion | LiveCriterion) -> Criterion | LiveCriterion:
    """``"magnitude"``, ``"movement"``, ... as an object with its defaults; objects pass through.

    Raises:
        UnknownName: there is no such criterion.
    """
    return build(find("criteria", criterion), {}, criterion) if isinstance(criterion, str) else criterion


def standing(criterion: Criterion | LiveCriterion) -> Criterion:
    """``criterion``, if it looks at a model as it stands.

    Raises:
        NeedsTask: it is gathered in training.
    """
    if isinstance(criterion, LiveCriterion):
        raise NeedsTask(
            f"{criterion} is gathered in training: use sc.methods.Gradual(criterion=...).start(...), or a criterion that looks at a "
            "trained model"
        )
    return criterion


def granularity_of(text: str | Granularity) -> Granularity:
    """``"unstructured"``, ``"2:4"``, ``"block:4x1"``, ``"filter"``, ... as an object; objects pass through.

    Raises:
        UnknownName: no granularity reads this text.
    """
    if not isinstance(text, str):
        return text
    for name in names_in("granularities"):
        parse = getattr(importlib.import_module(f"secateur.granularities.{name}"), "parse", None)
        found = parse(text) if parse else None
        if found is not None:
            return found  # type: ignore[no-any-return]
    if ":" in text and not text[0].isdigit() and not text.startswith("block:"):
        made = dotted(text)
        return made() if isinstance(made, type) else made  # type: ignore[no-any-return]
    if text == "channel":
        raise UnknownName(
            "granularity='channel' takes channels out for real, and this method sets weights to zero: use sc.prune(..., "
            "granularity='channel'), sc.methods.Stepwise, GDP or Slimming; for whole filters of zeros, granularity='filter'"
        )
    raise UnknownName(
        f"granularity {text!r} is unknown; there are: unstructured, row, N:M such as 2:4, block:RxC such as block:4x1, "
        "filter, kernel, input_channel, shape, and channel in sc.prune (yours: 'package.module:Thing')"
    )


def allocation_of(
    scope: str, sparsity: float, overrides: Mapping[str, float] | None = None, min_kept: int = 0
) -> Allocation:
    """The allocation that ``scope`` names ("global", "layer", "erk", "lamp", ...), with layers set by hand on top.

    Raises:
        UnknownName: there is no such scope.
        BadSparsity: a sparsity is not in [0, 1).
    """
    if ":" not in scope and scope not in (known := _scopes()):
        raise UnknownName(
            f"scope={scope!r} is none of {', '.join(known)}{_hint(scope, known)} (yours: 'package.module:Thing')"
        )
    options: dict[str, Any] = {"sparsity": sparsity} | ({"min_kept": min_kept} if min_kept else {})
    made: Allocation = build(find("allocations", _SCOPES.get(scope, scope)), options, f"scope {scope!r}")
    if overrides:
        per_layer = find("allocations", "per_layer")
        made = per_layer(sparsities=tuple(overrides.items()), otherwise=made, min_kept=min_kept)
    return made


def _scopes() -> list[str]:
    """Names of allocations that need nothing but a sparsity; "layer" is the people's word for uniform."""
    alone = [n for n in names_in("allocations") if _required(find("allocations", n)) == ["sparsity"]]
    return sorted({*_SCOPES, *alone})


def _required(thing: Any) -> list[str]:
    return [f.name for f in fields(thing) if f.init and f.default is MISSING and f.default_factory is MISSING]


def _hint(name: str, known: list[str]) -> str:
    near = get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def budget_of(text: str) -> tuple[Budget, Cost]:
    """``"macs:50%"`` as a budget and the cost that it is a budget of.

    Raises:
        UnknownName: it is not understood, or there is no such cost.
    """
    costs = {name: find("costs", name)() for name in names_in("costs")}
    wanted = Budget.of(text, {name: cost.unit for name, cost in costs.items()})
    return wanted, costs.get(wanted.cost) or find("costs", wanted.cost)()


def _files(folder: str) -> list[pkgutil.ModuleInfo]:
    return list(pkgutil.iter_modules(importlib.import_module(f"secateur.{folder}").__path__))
