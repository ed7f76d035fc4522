"""How much stays, as `secateur.prune` is told: a sparsity or a budget, spread by a scope."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from secateur.errors import BadSparsity, UnknownName
from secateur.limits import check_units, limit_of
from secateur.names import allocation_of
from secateur.narrowing.meeting import Limit
from secateur.notes import describe
from secateur.protocols import Allocation, Granularity
from secateur.runtime.budget import EngineLatency, check_engine
from secateur.sensitivity import Sensitivity

__all__ = ["Amount"]


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What a user says of the amount; see `secateur.prune` for the words.

    Raises:
        UnknownName, UnknownOperation: another runtime, or one that keeps no such budget or is not installed.
    """

    sparsity: float | None
    budget: str | None
    scope: str | Allocation | Sensitivity
    overrides: Mapping[str, float] | None
    min_kept: int
    runtime: str = "torch"

    def __post_init__(self) -> None:
        check_units(min_kept=self.min_kept)
        if self.runtime not in ("torch", "secateur"):
            raise UnknownName(f"runtime={self.runtime!r} is not known; there are 'torch' and 'secateur'")
        if self.runtime == "secateur":
            if self.budget is None:
                raise UnknownName("runtime= says in whose time a budget is kept: pass budget='latency:50%' too")
            check_engine(self.budget)

    @property
    def is_given(self) -> bool:
        """Whether anything was said: methods that find out by themselves may be left alone."""
        said = self.sparsity is not None or self.budget is not None or self.scope != "global"
        return said or bool(self.overrides or self.min_kept)

    def of_groups(self) -> Allocation | Limit:
        """How much of coupled groups stays; none vanishes.

        Raises:
            BadSparsity, UnknownName: it is not said, or said twice.
        """
        kept = replace(self, min_kept=max(1, self.min_kept))
        if self.budget is None:
            return kept.allocation()
        self.check_budget()
        limit = kept._limit(self.budget)
        return replace(limit, cost=EngineLatency()) if self.runtime == "secateur" else limit

    def check_budget(self) -> None:
        """Refuse what has no say beside a budget.

        Raises:
            BadSparsity: sparsities are given too.
        """
        if self.sparsity is not None or self.overrides:
            raise BadSparsity(
                "budget= finds out by itself how much has to leave and where, so sparsity= and overrides= have no say; leave them out, or "
                "leave budget= out"
            )

    def allocation(self) -> Allocation:
        """How much stays, from the sparsity and the scope.

        Raises:
            BadSparsity, UnknownName: it is not said, or said twice.
        """
        if isinstance(self.scope, Sensitivity):
            if self.sparsity is None:
                raise BadSparsity("how much should leave? pass sparsity= or budget= beside the curves in scope=")
            return self.scope.allocation(self.sparsity)
        if not isinstance(self.scope, str):
            if self.sparsity is not None or self.overrides:
                raise BadSparsity(
                    f"scope={describe(self.scope)} says how much stays by itself; leave sparsity= and overrides= out"
                )
            return self.scope
        if self.sparsity is None:
            raise BadSparsity("how much should leave? pass sparsity=, the fraction removed, e.g. sparsity=0.9")
        return allocation_of(self.scope, self.sparsity, self.overrides, self.min_kept)

    def said_by(self, pattern: Granularity) -> bool:
        """Whether the granularity itself says how much stays, as N:M does; nothing else may then say something different.

        Raises:
            BadSparsity: something does.
        """
        if pattern.quota is None:
            return False
        sizes, name = dict(getattr(pattern, "sizes", ())), getattr(pattern, "name", "")
        given = 1 - pattern.quota / sizes["m"] if "m" in sizes else None
        if self.sparsity is not None and given is not None and abs(given - self.sparsity) > 1e-9:
            raise BadSparsity(
                f"granularity {name!r} removes {given:g} of the weights, but sparsity={self.sparsity:g} "
                "was asked for; leave sparsity out, or choose another pattern"
            )
        if self.overrides or self.min_kept:
            raise BadSparsity(
                f"granularity {name!r} says how much stays in every layer, so overrides= and min_kept= have no say; "
                "leave single layers dense with ignore="
            )
        return True

    def _limit(self, budget: str) -> Limit:
        if isinstance(self.scope, Sensitivity):
            harms = tuple((name, self.scope.harm(name)) for name in self.scope.curves)
            return replace(limit_of(budget, min_kept=self.min_kept), harms=harms)
        if not isinstance(self.scope, str):
            raise BadSparsity(
                f"scope={describe(self.scope)} says how much stays by itself, and so does budget=; give a name such as 'layer', or curves of "
                "sc.sensitivity, which are followed as far as the budget asks for"
            )
        return limit_of(budget, self.scope, min_kept=self.min_kept)
