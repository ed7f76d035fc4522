"""A latency budget in the time of the sparse engine, for single weights, blocks or rows: sparsity goes where the time is.

    time = fixed + sum over layers of slope * weights that stay       (a kernel that skips zeros takes a time in proportion to the rest)

The slopes come from the engine itself: it times every layer at two sparsities of the same pattern. The best weights for their time are
kept (a knapsack, see `secateur.allocations.priced`), the result is compiled and timed beside the dense network, and the aim is corrected.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn

import secateur_engine
from secateur.allocations.priced import Priced
from secateur.allocations.uniform import Uniform
from secateur.budgets import Budget, spelled
from secateur.criteria.magnitude import Magnitude
from secateur.errors import NeedsTask, OverBudget, UnknownName, UnknownOperation
from secateur.methods.one_shot import OneShot
from secateur.names import budget_of
from secateur.narrowing.aims import Aims
from secateur.planning import plan
from secateur.pricing import Part
from secateur.profiling.timing import Call, measure
from secateur.protocols import Allocation, Granularity
from secateur.report import Pruned
from secateur.runtime.compiled import Compiled, compile_model
from secateur.scores import Scores
from secateur.targets import find_targets
from secateur.task import Task

__all__ = ["EngineLatency", "check_engine", "within_engine"]

_SPARSE = (0.95, 0.8)  # two sparsities at which no kernel falls back to all weights
_ROUNDS = 8
_SLACK = 0.02
_LEAST = 0.02  # of what all layers' weights take: nothing is tried below, where a layer would be empty
_SPARED = 0.5  # no layer falls below this part of the density that all would have alike: scores do not see what an empty layer takes away


def within_engine(
    method: Any,
    model: nn.Module,
    budget: str,
    *,
    example_inputs: Any,
    task: Task | None,
    power: float = 1.0,
    relative: bool = False,
    min_kept: int = 0,
    seconds: float = 1.0,
    allot: Callable[[Priced], Allocation] = lambda priced: priced,
) -> Pruned:
    """Keep the best weights that the engine can run in time.

    Args:
        method: criterion, pattern and what to leave alone; its allocation is found here. One that has no scores is timed with the largest
            weights: the clock sees how many there are, not which.
        model: the dense model; a fraction is one of its time in the same engine.
        budget: ``"latency:50%"`` or ``"latency:5ms"``, of one call on ``example_inputs``, with as many threads as torch uses.
        example_inputs: what is timed.
        task: for the criterion and the receipt.
        power: of the score, to make a value of it that adds up.
        relative: values of a layer relative to what it keeps; see `Priced`.
        min_kept: units that stay in every layer at least.
        seconds: about how long to time each candidate.
        allot: another way to spend the same.

    Raises:
        UnknownName: another budget. NeedsTask: no ``example_inputs``. UnknownOperation: the engine is not there.
        OverBudget: what cannot leave takes longer.
    """
    asked = check_engine(budget)
    if example_inputs is None:
        raise NeedsTask(f"budget={budget!r} is timed: pass example_inputs=, e.g. torch.randn(1, 3, 224, 224)")
    timed = method if isinstance(method, OneShot) else OneShot(criterion=Magnitude(), ignore=method.ignore)
    clock = _Clock(model, timed.scores(model, task), method.granularity, example_inputs, seconds)
    best = _search(clock, budget, asked, power=power, relative=relative, min_kept=min_kept, allot=allot)
    pruned: Pruned = replace(method, allocation=best.amount)(model, task=task, example_inputs=example_inputs)
    return replace(pruned, report=replace(pruned.report, notes=(*pruned.report.notes, best.says())))


def _search(
    clock: "_Clock",
    budget: str,
    asked: Budget,
    *,
    power: float,
    relative: bool,
    min_kept: int,
    allot: Callable[[Priced], Allocation],
) -> "_Tried":
    """The slowest of what was tried that keeps the budget."""
    prices, fixed = clock.prices(min_kept)
    spent = sum(each * clock.scores.values[name].numel() for name, each in prices.items())
    aims, best = Aims(start=fixed + spent, least=fixed + _LEAST * spent, slack=_SLACK), None
    for _ in range(_ROUNDS):
        steps = tuple((name, ((float("inf"), each),)) for name, each in prices.items())
        spared = _SPARED * (aims.next - fixed) / spent if spent else 0.0  # of a uniform sparsity for that time
        amount = Priced(
            prices=steps, limit=aims.next, fixed=fixed, power=power, relative=relative, min_kept=min_kept or spared
        )
        try:
            found = clock.tried(allot(amount), asked)
        except OverBudget:
            break
        if found.now <= found.limit and (best is None or found.now > best.now):
            best = found
        if not aims.learn(found.now / found.limit):
            break
    if best is None:
        raise OverBudget(
            f"the engine takes at least {aims.least:.4g} ms for what does not leave, of {fixed + spent:.4g} ms for all, and {budget!r} was asked "
            "for; raise the budget, or narrow the network with granularity='channel'"
        )
    return best


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What came of an allocation, in milliseconds; ``skipped``: the fraction of multiply-accumulates that are zeros."""

    amount: Allocation
    dense: float
    limit: float
    now: float
    skipped: float

    def says(self) -> str:
        return (
            f"Budget: at most {spelled(self.limit, 'ms')} in the sparse engine were asked for ({self.limit / self.dense:.1%} of the dense "
            f"model's {spelled(self.dense, 'ms')} there), {spelled(self.now, 'ms')} are left ({self.now / self.dense:.1%}); {self.skipped:.1%} of the "
            "multiply-accumulates are skipped. `sc.compile` makes that program; elsewhere the zeros do not pay"
        )


class _Clock:
    """Times masked copies of one model in the engine."""

    def __init__(
        self, model: nn.Module, scores: Scores, granularity: Granularity, example_inputs: Any, seconds: float
    ) -> None:
        self.model, self.scores, self.granularity = model, scores, granularity
        self.example_inputs, self.seconds = example_inputs, seconds
        self.dense = compile_model(model, example_inputs)

    def prices(self, min_kept: int) -> tuple[dict[str, float], float]:
        """Milliseconds for each weight that stays, by name, and what is spent whatever stays."""
        few, many = (self._times(Uniform(sparsity=s, min_kept=min_kept)) for s in _SPARSE)
        slopes, fixed = dict[str, float](), sum(ms for ms, _ in many.values())
        for name, (ms, kept) in many.items():
            if name in few and name in self.scores.values and kept > few[name][1]:
                slope = (ms - few[name][0]) / (kept - few[name][1])
                slopes[name] = max(slope, 0.2 * ms / kept)  # a clock may say that more is faster
                fixed -= min(ms, slopes[name] * kept)
        return slopes, fixed

    def tried(self, amount: Allocation, asked: Budget) -> _Tried:
        """Prune, compile, and time beside the dense network."""
        compiled = self._compiled(amount)
        calls = [_call(one, self.example_inputs) for one in (self.dense, compiled)]
        dense, now = (took.median_ms for took in measure(calls, seconds=self.seconds))
        skipped = compiled.report(seconds=0.0, dense=False).sparsity
        return _Tried(amount=amount, dense=dense, limit=asked.limit(dense), now=now, skipped=skipped)

    def _compiled(self, amount: Any) -> Compiled:
        masks = plan(self.scores, self.granularity, amount)
        return compile_model(masks.apply_(copy.deepcopy(self.model)), self.example_inputs)

    def _times(self, amount: Any) -> Mapping[str, tuple[float, float]]:
        """By parameter, or by step for what has none: milliseconds, and weights that stay."""
        found: dict[str, tuple[float, float]] = {}
        for k, layer in enumerate(self._compiled(amount).report(seconds=self.seconds, dense=False).layers):
            name = f"{layer.name}.weight".lstrip(".")
            weights = self.scores.values[name].numel() if name in self.scores.values and layer.macs else 0
            ms, _ = found.get(name, (0.0, 0.0)) if weights else (0.0, 0.0)
            found[name if weights else f"step {k}"] = (ms + layer.ms, weights * (1 - layer.sparsity))
        return found


@final
@dataclass(frozen=True, kw_only=True)
class EngineLatency:
    """A cost of whole channels: milliseconds of one call in the engine.

    Args:
        seconds: about how long to time each model.
        place: where the time is measured, for receipts.
    """

    seconds: float = 1.0
    unit: str = "ms"
    place: str = "in the sparse engine"

    def measure(self, models: Sequence[nn.Module], example_inputs: Any) -> list[float]:
        """The median time of each compiled model; they take turns."""
        calls = [_call(compile_model(model, example_inputs), example_inputs) for model in models]
        return [took.median_ms for took in measure(calls, seconds=self.seconds)]

    def parts(self, model: nn.Module, example_inputs: Any) -> tuple[Part, ...]:
        """The time of every layer, in proportion to its inputs and outputs; that of all other steps stays."""
        facts = find_targets(model)
        parts: list[Part] = []
        for layer in compile_model(model, example_inputs).report(seconds=self.seconds, dense=False).layers:
            known = facts.get(f"{layer.name}.weight".lstrip("."))
            dims = [] if known is None else [known.out_dim, known.in_dim]
            name = f"{layer.name}.weight".lstrip(".")
            parts.append(Part(layer.ms, tuple((name, dim) for dim in dims if dim is not None and layer.macs)))
        return tuple(parts)


def _call(compiled: Compiled, example_inputs: Any) -> Call:
    if isinstance(example_inputs, Mapping):
        return lambda: compiled(**example_inputs)
    if isinstance(example_inputs, tuple | list):
        return lambda: compiled(*example_inputs)
    return lambda: compiled(example_inputs)


def check_engine(budget: str) -> Budget:
    """Read a budget that the engine is to keep.

    Raises:
        UnknownName: it is none of time. UnknownOperation: the engine is not there.
    """
    asked, _ = budget_of(budget)
    if asked.cost != "latency":
        raise UnknownName(f"runtime='secateur' is a clock: write budget='latency:50%', not {budget!r}")
    if not secateur_engine.available(""):
        raise UnknownOperation(
            "the compiled engine is not installed here, so nothing can be timed in it: install a C++ compiler and build the package again"
        )
    return asked
