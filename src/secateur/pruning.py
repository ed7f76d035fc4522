"""`prune`: the one call. Strings become objects here, and only here."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from secateur.errors import BadSparsity, OverBudget, UnknownName
from secateur.limits import check_words, limit_of
from secateur.meeting import Limit
from secateur.methods.channel import Channel
from secateur.methods.one_shot import OneShot
from secateur.names import allocation_of, build, find, granularity_of, names_in
from secateur.notes import describe
from secateur.protocols import Allocation, Criterion, Granularity
from secateur.report import Pruned
from secateur.sensitivity import Sensitivity
from secateur.spending import Spending
from secateur.targets import Ignore, find_targets
from secateur.task import Task

__all__ = ["prune"]

_OF_CHANNELS = ("round_to", "heads", "norms", "repair", "fallback", "cost_weight")


def prune(
    model: nn.Module,
    method: str | Criterion = "magnitude",
    *,
    sparsity: float | None = None,
    budget: str | None = None,
    granularity: str | Granularity = "unstructured",
    scope: str | Allocation | Sensitivity = "global",
    overrides: Mapping[str, float] | None = None,
    min_kept: int = 0,
    ignore: Ignore | Iterable[Ignore] = (),
    include_bias: bool = False,
    task: Task | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    **options: Any,
) -> Pruned:
    """Prune a trained model in one shot; the model is not touched, a new one comes back with its receipt.

    Args:
        model: any module.
        method: "magnitude", "random", "taylor", "snip", or your own criterion (an object, or ``"package.module:Thing"``); or
            "data_free", which merges similar channels, with granularity "channel".
        sparsity: the fraction removed, in [0, 1). N:M patterns say it themselves; "data_free" finds it out, if it is left out.
        budget: what the result may cost: ``"macs:50%"``, ``"params:1M"``, ``"bytes:2MB"``, ``"latency:50%"``, ``"latency:8ms"`` or
            ``"peak_memory:64MB"``; met from below, with granularity "channel". The widths follow from it. ``"energy:40%"`` also works
            with single weights, rows, blocks, ...: what stays is worth the most for its energy.
        granularity: "unstructured", "2:4" (any N:M), "block:4x1" (any RxC), "filter", "kernel", "input_channel",
            "shape", "row": masks.
            "channel": coupled channels, heads and hidden units leave for real, and the network becomes narrower.
        scope: "global" (one ranking; with a budget, by score per cost), "layer" (the same fraction everywhere), "erk", "lamp", the
            curves of `secateur.sensitivity`, or an allocation object, which says how much by itself.
        overrides: sparsities of single layers by name, module path or glob; the rest follows ``scope``.
        min_kept: units that stay in every layer at least.
        ignore: names, globs, ``re:`` expressions, module types or modules to leave alone.
        include_bias: prune biases too.
        task: data, loss and quality, for criteria that need them and for the receipt.
        example_inputs: a tensor, a tuple, or a dict of keyword inputs: for MACs and latency in the receipt.
        seed: for criteria that draw.
        **options: passed to the criterion, e.g. ``p=2`` for magnitude; with ``granularity="channel"`` also ``round_to=8``
            (widths in multiples of 8; the default for a latency), ``heads="inside"`` (channels leave inside heads instead of whole heads),
            ``norms="shrink"`` (the width that a layer norm runs over may leave too), ``repair=True`` (layers that read what left are
            refitted on the task's batches), ``cost_weight=1e-3`` (what a million multiply-accumulates take off a unit's score) and
            ``fallback="graph"`` (a graph module comes back where the class itself has sizes written into its code).

    Returns:
        ``Pruned(model, masks, report)``; ``print(pruned.report)`` is the receipt.

    Raises:
        UnknownName: a method, granularity, scope, option or layer that does not exist.
        BadSparsity: no sparsity, or not a fraction in [0, 1).
        NothingToPrune: no layer is left to prune.

    >>> import torch
    >>> pruned = prune(torch.nn.Linear(10, 10, bias=False), sparsity=0.75)
    >>> pruned.masks.kept
    25
    """
    check_words(model, budget)
    if budget is not None and granularity != "channel":
        _check_alone(sparsity, overrides)
        criterion = _criterion(method, options, seed)
        within = OneShot(
            criterion=criterion, granularity=granularity_of(granularity), ignore=ignore, include_bias=include_bias
        )
        power = 2.0 if describe(criterion).startswith("Magnitude") else 1.0
        return _within(within, Spending(model, budget, example_inputs), model, task, power=power, min_kept=min_kept)
    if budget is not None and budget.strip().startswith("latency") and "round_to" not in options:
        again = partial(
            prune, model, method, granularity=granularity, scope=scope, budget=budget, min_kept=min_kept, ignore=ignore
        )
        with suppress(OverBudget):  # odd widths cost more than they save, unless there is no other way
            return again(task=task, example_inputs=example_inputs, seed=seed, round_to=8, **options)
        options["round_to"] = 1
    own = _own(method, granularity)
    if own is not None:
        asked = sparsity is not None or budget is not None or scope != "global" or overrides or min_kept
        how: dict[str, Any] = {"ignore": ignore}
        if own.by_name == "any":
            how |= {"granularity": (pattern := granularity_of(granularity)), "seed": seed}
            asked = asked and not _says_it_all(pattern, sparsity, overrides, min_kept)
        how["allocation"] = _amount(sparsity, budget, scope, overrides, min_kept) if asked else None
        built = build(own, how | options, f"method {method!r}")
        return built(model, task=task, example_inputs=example_inputs)  # type: ignore[no-any-return]
    if granularity == "channel":
        shape = {key: options.pop(key) for key in _OF_CHANNELS if key in options}
        allocation = _amount(sparsity, budget, scope, overrides, min_kept)
        narrowing = Channel(criterion=_criterion(method, options, seed), allocation=allocation, ignore=ignore, **shape)
        return narrowing(model, task=task, example_inputs=example_inputs)
    pattern = granularity_of(granularity)
    quota = _says_it_all(pattern, sparsity, overrides, min_kept)
    one_shot = OneShot(
        criterion=_criterion(method, options, seed),
        granularity=pattern,
        allocation=None if quota else _allocation(sparsity, scope, overrides, min_kept),
        ignore=ignore,
        include_bias=include_bias,
    )
    return one_shot(model, task=task, example_inputs=example_inputs)


def _within(
    one_shot: OneShot, spending: Spending, model: nn.Module, task: Task | None, *, power: float, min_kept: int
) -> Pruned:
    """Single weights, rows, blocks, ... within a budget."""
    if one_shot.granularity.quota is not None:
        raise BadSparsity(
            f"granularity {describe(one_shot.granularity)!r} says how much stays in every layer, so a budget has no say; leave it out"
        )
    targets = find_targets(model, ignore=one_shot.ignore, include_bias=one_shot.include_bias)
    amount = spending.allocation(targets, power=power, min_kept=min_kept)
    pruned = replace(one_shot, allocation=amount)(model, task=task, example_inputs=spending.example_inputs)
    notes = (*pruned.report.notes, spending.says(pruned.model))
    return replace(pruned, report=replace(pruned.report, notes=notes))


def _own(method: str | Criterion, granularity: str | Granularity) -> Any:
    """A method of its own that is called by its name, if ``method`` is one.

    Raises:
        UnknownName: it works at another granularity.
    """
    if not isinstance(method, str) or method not in names_in("methods"):
        return None
    found = find("methods", method)
    own = getattr(found, "by_name", None)
    if own is not None and own not in ("any", granularity):
        raise UnknownName(f"the method {method!r} takes whole units out: pass granularity={own!r} and example_inputs=")
    return None if own is None else found


def _amount(
    sparsity: float | None,
    budget: str | None,
    scope: str | Allocation | Sensitivity,
    overrides: Mapping[str, float] | None,
    min_kept: int,
) -> Allocation | Limit:
    """How much of coupled groups stays."""
    if budget is None:
        return _allocation(sparsity, scope, overrides, max(1, min_kept))
    _check_alone(sparsity, overrides)
    return _limit(budget, scope, max(1, min_kept))


def _check_alone(sparsity: float | None, overrides: Mapping[str, float] | None) -> None:
    if sparsity is not None or overrides:
        raise BadSparsity(
            "budget= finds out by itself how much has to leave and where, so sparsity= and overrides= have no say; leave them out, or "
            "leave budget= out"
        )


def _criterion(method: str | Criterion, options: dict[str, Any], seed: int) -> Criterion:
    if not isinstance(method, str):
        if options:
            raise UnknownName(f"{method} is an object and takes no further options, but got {', '.join(options)}")
        return method
    if method in names_in("methods"):
        raise UnknownName(
            f"{method!r} is a method with a training loop or parts of its own: use sc.methods.{method.title().replace('_', '')}(...)"
        )
    found = find("criteria", method)
    if "seed" in getattr(found, "__dataclass_fields__", {}):
        options = {"seed": seed} | options
    return build(found, options, f"method {method!r}")  # type: ignore[no-any-return]


def _allocation(
    sparsity: float | None,
    scope: str | Allocation | Sensitivity,
    overrides: Mapping[str, float] | None,
    min_kept: int,
) -> Allocation:
    if isinstance(scope, Sensitivity):
        if sparsity is None:
            raise BadSparsity("how much should leave? pass sparsity= or budget= beside the curves in scope=")
        return scope.allocation(sparsity)
    if not isinstance(scope, str):
        if sparsity is not None or overrides:
            raise BadSparsity(
                f"scope={describe(scope)} says how much stays by itself; leave sparsity= and overrides= out"
            )
        return scope
    if sparsity is None:
        raise BadSparsity("how much should leave? pass sparsity=, the fraction removed, e.g. sparsity=0.9")
    return allocation_of(scope, sparsity, overrides, min_kept)


def _limit(budget: str, scope: str | Allocation | Sensitivity, min_kept: int) -> Limit:
    if isinstance(scope, Sensitivity):
        harms = tuple((name, scope.harm(name)) for name in scope.curves)
        return replace(limit_of(budget, min_kept=min_kept), harms=harms)
    if not isinstance(scope, str):
        raise BadSparsity(
            f"scope={describe(scope)} says how much stays by itself, and so does budget=; give a name such as 'layer', or curves of "
            "sc.sensitivity, which are followed as far as the budget asks for"
        )
    return limit_of(budget, scope, min_kept=min_kept)


def _says_it_all(
    pattern: Granularity, sparsity: float | None, overrides: Mapping[str, float] | None, min_kept: int
) -> bool:
    """Whether the granularity itself says how much stays, as N:M does; nothing else may then say something different."""
    if pattern.quota is None:
        return False
    sizes, name = dict(getattr(pattern, "sizes", ())), getattr(pattern, "name", "")
    given = 1 - pattern.quota / sizes["m"] if "m" in sizes else None
    if sparsity is not None and given is not None and abs(given - sparsity) > 1e-9:
        raise BadSparsity(
            f"granularity {name!r} removes {given:g} of the weights, but sparsity={sparsity:g} "
            "was asked for; leave sparsity out, or choose another pattern"
        )
    if overrides or min_kept:
        raise BadSparsity(
            f"granularity {name!r} says how much stays in every layer, so overrides= and min_kept= have no say; "
            "leave single layers dense with ignore="
        )
    return True
