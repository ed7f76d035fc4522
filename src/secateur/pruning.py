"""`prune`: the one call."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.amounts import Amount
from secateur.choices import Choice
from secateur.counting import check_seed
from secateur.criteria.magnitude import Magnitude
from secateur.errors import BadSparsity, OverBudget, UnknownName
from secateur.limits import check_words
from secateur.methods.one_shot import OneShot
from secateur.notes import describe
from secateur.protocols import Allocation, Criterion, Granularity
from secateur.report import Pruned
from secateur.runtime.budget import within_engine
from secateur.sensitivity import Sensitivity
from secateur.spending import Spending
from secateur.targets import Ignore, find_targets
from secateur.task import Task

__all__ = ["prune"]


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
    include_bias: bool | None = None,
    task: Task | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    runtime: str = "torch",
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
        include_bias: prune biases too; None: as the method does by itself ("obs" does, the others do not).
        task: data, loss and quality, for criteria that need them and for the receipt.
        example_inputs: a tensor, a tuple, or a dict of keyword inputs: for MACs and latency in the receipt.
        seed: for criteria that draw.
        runtime: in whose time a latency budget is kept: "torch", or "secateur", the engine of `secateur.compile`, which skips zeros; there
            ``"latency:50%"`` also works with single weights, rows and blocks, and sparsity goes where the time is.
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
    check_words(model, budget, task)
    check_seed(seed)
    choice = Choice(method=method, granularity=granularity, ignore=ignore, include_bias=include_bias, seed=seed)
    amount = Amount(
        sparsity=sparsity, budget=budget, scope=scope, overrides=overrides, min_kept=min_kept, runtime=runtime
    )
    if budget is not None and granularity != "channel":
        amount.check_budget()
        return _within(choice.priced(options), amount, model, task, example_inputs)

    def run(**more: Any) -> Pruned:
        built = choice.built(amount, options | more)
        return built(model, task=task, example_inputs=example_inputs)  # type: ignore[no-any-return]

    timed = budget is not None and budget.strip().startswith("latency")
    return _rounded(run) if timed and "round_to" not in options else run()


def _rounded(run: Callable[..., Pruned]) -> Pruned:
    """Widths in multiples of 8: odd ones cost more than they save, unless there is no other way."""
    with suppress(OverBudget):
        return run(round_to=8)
    found = run(round_to=1)
    said = "No widths in multiples of 8, the default for a latency, keep this budget, so any width was allowed; round_to=8 insists"
    return replace(found, report=replace(found.report, notes=(*found.report.notes, said)))


def _within(method: Any, amount: Amount, model: nn.Module, task: Task | None, example_inputs: Any) -> Pruned:
    """Single weights, rows, blocks, ... within a budget."""
    assert amount.budget is not None
    if amount.scope != "global":
        said = repr(amount.scope) if isinstance(amount.scope, str) else describe(amount.scope)
        raise BadSparsity(
            f"a budget spends on all layers together wherever it buys most, so scope={said} has no say; leave one of them out"
        )
    if method.granularity.quota is not None:
        raise BadSparsity(
            f"granularity {describe(method.granularity)!r} says how much stays in every layer, so a budget has no say; leave it out"
        )
    sizes = isinstance(method, OneShot) and isinstance(method.criterion, Magnitude)
    power, kept = 2.0 if sizes else 1.0, amount.min_kept
    if amount.runtime == "secateur":
        if not getattr(method, "clocked", True):
            raise UnknownName(
                f"{describe(method)} keeps no budget in the engine's time: use 'layer_obs' or a criterion"
            )
        how = {"task": task, "example_inputs": example_inputs, "power": power, "relative": sizes, "min_kept": kept}
        how |= {"allot": method.allot(model, task)} if hasattr(method, "allot") else {}
        return within_engine(method, model, amount.budget, **how)
    spending = Spending(model, amount.budget, example_inputs, masks_only=not isinstance(method, OneShot))
    targets = find_targets(model, ignore=method.ignore, include_bias=getattr(method, "include_bias", False))
    allocation = spending.allocation(targets, power=power, min_kept=kept)
    pruned: Pruned = replace(method, allocation=allocation)(model, task=task, example_inputs=example_inputs)
    return replace(pruned, report=replace(pruned.report, notes=(*pruned.report.notes, spending.says(pruned.model))))
