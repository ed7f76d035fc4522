"""What may stay, in the words of a user: ``sparsity=0.5`` becomes an allocation, ``budget="macs:50%"`` a limit to be met by measuring."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.budgets import Budget
from secateur.errors import BadSparsity, NeedsTask, UnknownName, WrongModel
from secateur.names import allocation_of, budget_of
from secateur.narrowing.meeting import Limit
from secateur.protocols import Allocation
from secateur.task import Task

__all__ = ["absolute", "check_words", "limit_of", "share_of"]


def check_words(model: Any, budget: Any, task: Any = None) -> None:
    """Refuse what is no model, a budget that does not say of what, and batches that are no task.

    Raises:
        WrongModel, UnknownName, NeedsTask: with what to pass instead.
    """
    if not isinstance(model, nn.Module):
        raise WrongModel(f"{type(model).__name__} is no model: pass a torch.nn.Module")
    if budget is not None:
        _check_budget(budget)
    if task is not None and not isinstance(task, Task):
        raise NeedsTask(f"task= is {type(task).__name__}: pass task=sc.Task(batches, loss=..., evaluate=...)")


def _check_budget(budget: Any) -> None:
    if not isinstance(budget, str):
        raise UnknownName(f"budget={budget!r} must say of what: e.g. 'macs:50%', 'params:1M', 'latency:8ms'")


def check_units(*, round_to: int = 1, min_kept: int = 0) -> None:
    """Refuse numbers of units that are none.

    Raises:
        BadSparsity: with the number and an example.
    """
    if not isinstance(round_to, int) or round_to < 1:
        raise BadSparsity(f"round_to={round_to!r} must be a positive whole number of channels, e.g. 8")
    if not isinstance(min_kept, int) or min_kept < 0:
        raise BadSparsity(f"min_kept={min_kept!r} must be a whole number of units that stay, 0 or more")


def limit_of(budget: str, scope: str = "global", *, min_kept: int = 1) -> Limit:
    """Read a budget; with a ``scope`` other than "global" its allocation is followed as far as the budget asks for.

    Raises:
        UnknownName: the budget is not understood, or there is no such cost or scope.

    >>> limit_of("macs:50%").budget
    Budget(cost='macs', amount=0.5, relative=True)
    """
    wanted, cost = budget_of(budget)
    if scope == "global":
        return Limit(budget=wanted, cost=cost, min_kept=min_kept)
    allocation_of(scope, 0.5)  # an unknown name is refused here
    return Limit(budget=wanted, cost=cost, family=_Family(scope, min_kept), min_kept=min_kept)


def absolute(limit: Limit, dense: float) -> Limit:
    """A limit in the cost's unit, once it is known what the dense model costs: for models that change before it is met.

    >>> absolute(limit_of("macs:50%"), 2000.0).budget
    Budget(cost='macs', amount=1000.0, relative=False)
    """
    return replace(limit, budget=Budget(limit.budget.cost, limit.budget.limit(dense), relative=False))


def share_of(sparsity: float | None, budget: str | None, scope: str, min_kept: int) -> Allocation | Limit:
    """What the one of ``sparsity`` and ``budget`` that is given asks for.

    Raises:
        BadSparsity: both are given, or none, or the sparsity is no fraction.
        UnknownName: see `limit_of`.
    """
    if (sparsity is None) == (budget is None):
        given = "both were given" if budget else "none was given"
        raise BadSparsity(
            f"how much should leave? pass one of sparsity= (the fraction of the units removed, e.g. 0.5) and budget= (what the result "
            f"may cost, e.g. 'macs:50%'); {given}"
        )
    if budget is not None:
        _check_budget(budget)
        return limit_of(budget, scope, min_kept=min_kept)
    assert sparsity is not None
    return allocation_of(scope, sparsity, min_kept=min_kept)


@dataclass(frozen=True)
class _Family:
    """From a sparsity to the allocation of one scope."""

    scope: str
    min_kept: int

    def __call__(self, sparsity: float) -> Allocation:
        return allocation_of(self.scope, min(sparsity, 1 - 1e-9), None, self.min_kept)
