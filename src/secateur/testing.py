"""The contracts as checks that anyone can call on a part of their own; the library's tests call them on every part it ships.

    from secateur import testing
    def test_my_criterion():
        testing.check_criterion(MyCriterion(), model, task)

Each check raises ``AssertionError`` that says which promise was broken. They need nothing but torch.
"""

import copy
import dataclasses
import importlib
import itertools
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.masks import Masks
from secateur.protocols import Allocation, Criterion, Granularity, LiveCriterion, Run, Schedule, TrainingMethod
from secateur.scores import Scores
from secateur.targets import find_targets
from secateur.task import Task

__all__ = [
    "check_allocation",
    "check_criterion",
    "check_file",
    "check_granularity",
    "check_live_criterion",
    "check_schedule",
    "check_training_method",
    "check_value",
]

_Loss = Callable[[nn.Module], Tensor]


def check_file(name: str) -> None:
    """A file of the library, e.g. ``secateur.criteria.magnitude``: it says what it is, and what it offers exists.

    Raises:
        AssertionError: it does not.
    """
    module = importlib.import_module(name)
    _promise(bool((module.__doc__ or "").strip()), f"{name} has no docstring")
    offered = getattr(module, "__all__", None)
    _promise(bool(offered), f"{name} has no __all__")
    for thing in offered or ():
        _promise(hasattr(module, thing), f"{name}.__all__ names {thing!r}, which does not exist")
        _promise(bool(getattr(module, thing).__doc__), f"{name}.{thing} has no docstring")


def check_value(part: Any) -> None:
    """A part is a value: frozen, hashable, comparable, printable, picklable; its fields are its whole configuration.

    Raises:
        AssertionError: it is not.
    """
    kind = type(part).__name__
    _promise(dataclasses.is_dataclass(part), f"{kind} is no dataclass")
    _promise(bool(type(part).__dataclass_params__.frozen), f"{kind} is not frozen")
    twin = pickle.loads(pickle.dumps(part))  # noqa: S301  # our own bytes
    _promise(twin == part == copy.deepcopy(part), f"{kind} changes when it is pickled or copied")
    _promise(hash(twin) == hash(part), f"{kind} hashes differently after pickling")
    _promise(kind in repr(part), f"{kind} does not say its name when printed: {part!r}")
    given = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
    _promise(type(part)(**given) == part, f"{kind} cannot be built again from its fields")


def check_criterion(criterion: Criterion, model: nn.Module, task: Task | None = None) -> None:
    """Scores every target in its own shape, the same twice, and leaves the model and the random state as they were.

    Raises:
        AssertionError: it does not.
    """
    check_value(criterion)
    _promise(isinstance(criterion, Criterion), f"{criterion} does not have the shape of a criterion")
    targets = find_targets(model)
    before, randomness = _photograph(model), torch.get_rng_state()
    scores, again = criterion(model, targets, task), criterion(model, targets, task)
    _promise(
        _same(before, _photograph(model)), f"{criterion} changed the model: values, gradients, modes or requires_grad"
    )
    _promise(torch.equal(randomness, torch.get_rng_state()), f"{criterion} drew from the global random generator")
    _promise(
        list(scores.values) == list(targets), f"{criterion} scored {list(scores.values)} instead of {list(targets)}"
    )
    for name, value in scores.values.items():
        _promise(value.shape == model.get_parameter(name).shape, f"{criterion}: scores of {name!r} have another shape")
        _promise(not value.requires_grad, f"{criterion}: scores of {name!r} hang in an autograd graph")
        _promise(torch.equal(value, again.values[name]), f"{criterion}: scores of {name!r} differ from call to call")


def check_live_criterion(criterion: LiveCriterion, model: nn.Module, loss: _Loss) -> None:
    """Gathers evidence without touching the model, and takes up from its state where it left off.

    Raises:
        AssertionError: it does not.
    """
    check_value(criterion)
    targets = find_targets(model)
    tracker, fresh = criterion.track(model, targets), criterion.track(model, targets)
    torch.autograd.backward(loss(model))
    before = _photograph(model)
    tracker.observe(model)
    _promise(_same(before, _photograph(model)), f"{criterion} changed the model while observing")
    fresh.load_state_dict(copy.deepcopy(tracker.state_dict()))
    for one in (tracker, fresh):
        one.observe(model)
    found, resumed = tracker.scores(), fresh.scores()
    _promise(list(found.values) == list(targets), f"{criterion} scored {list(found.values)} instead of {list(targets)}")
    same = all(torch.equal(found.values[name], resumed.values[name]) for name in targets)
    _promise(same, f"{criterion} does not resume from its state")


def check_granularity(granularity: Granularity, scores: Scores) -> None:
    """Every weight belongs to exactly one unit; tables read in pieces what they read at once; spreading gives it back.

    Raises:
        AssertionError: one of these does not hold.
    """
    check_value(granularity)
    units = granularity.pool(scores)
    _promise(list(units) == list(scores.values), f"{granularity} dropped or added names")
    for name in units:
        table = units.tables[name]
        pieces = [piece for _, piece in units.pieces(name)]
        whole = torch.cat(pieces) if pieces else torch.empty(0)
        _promise(torch.equal(whole, units[name].reshape(-1)), f"{granularity}: pieces of {name!r} are not the whole")
        size = scores.values[name].numel()
        _promise(
            round(table.count * table.weights) == size, f"{granularity}: units of {name!r} do not cover its weights"
        )
    for keep in (True, False):
        all_or_none = {name: torch.full(units.tables[name].shape, keep) for name in units}
        spread = granularity.spread(all_or_none, scores)
        for name, mask in spread.items():
            fits = mask.shape == scores.values[name].shape and bool((mask == keep).all())
            _promise(
                fits, f"{granularity}: keeping {'all' if keep else 'no'} units of {name!r} is not that in its mask"
            )


def check_allocation(allocation: Allocation, granularity: Granularity, scores: Scores) -> None:
    """Counts every name, between nothing and everything, the same twice.

    Raises:
        AssertionError: it does not.
    """
    check_value(allocation)
    counts = dict(allocation(granularity.pool(scores)))
    units = granularity.pool(scores)
    _promise(set(counts) == set(units), f"{allocation} counted {list(counts)} instead of {list(units)}")
    _promise(counts == dict(allocation(units)), f"{allocation} counts differently from call to call")
    for name, count in counts.items():
        _promise(
            isinstance(count, int) and 0 <= count <= units.count(name), f"{allocation} keeps {count} units of {name!r}"
        )


def check_schedule(schedule: Schedule, final: float = 0.8) -> None:
    """Ends at the final sparsity with an update, never leaves [0, final], and does not fall unless it regrows.

    Raises:
        AssertionError: it does.
    """
    check_value(schedule)
    end = schedule.end_step
    _promise(schedule.updates_at(end), f"{schedule} does not renew masks at its end_step {end}")
    _promise(not schedule.updates_at(end + 1), f"{schedule} renews masks after its end_step {end}")
    curve = [schedule(step, final) for step in range(end + 3)]
    _promise(curve[end] == curve[-1] == final, f"{schedule} ends at {curve[end]} and {curve[-1]} instead of {final}")
    _promise(all(0 <= s <= final for s in curve), f"{schedule} leaves [0, {final}]")
    falls = any(later < earlier for earlier, later in itertools.pairwise(curve))
    _promise(schedule.regrows or not falls, f"{schedule} falls, but says that it does not regrow")


def check_training_method(
    method: TrainingMethod, make: Callable[[], nn.Module], loss: _Loss, *, steps: int, seed: int = 0, **inputs: Any
) -> Masks:
    """Ends with exact zeros where it says so, keeps the keys of ``state_dict``, and resumes from its state bit for bit.

    Args:
        method: ends within ``steps``; another run is interrupted half way.
        make: gives a fresh model.
        loss: of a model, without randomness.
        steps: how long to train.
        seed: for the models.
        **inputs: what else the method's ``start`` needs, such as ``example_inputs=``.

    Raises:
        AssertionError: one of these does not hold.
    """
    check_value(method)
    start = partial(method.start, **inputs)
    straight = _train(start, make, loss, steps=steps, seed=seed)
    halfway = copy.deepcopy([part.state_dict() for part in _train(start, make, loss, steps=steps // 2, seed=seed)])
    resumed = _train(start, make, loss, steps=steps - steps // 2, seed=seed + 1, state=halfway)
    masks, again = straight[2].finish().masks, resumed[2].finish().masks
    _promise(masks == again, f"{method} ends with other masks when it is resumed")
    _promise(_same(_photograph(straight[0]), _photograph(resumed[0])), f"{method} ends with other weights when resumed")
    for name, mask in masks.items():
        left = straight[0].get_parameter(name).detach()[~mask]
        _promise(not bool(left.any()), f"{method}: {name!r} is not zero where its mask says removed")
    return masks


def _train(
    start: Callable[..., Run], make: Callable[[], nn.Module], loss: _Loss, *, steps: int, seed: int, state: Any = ()
) -> tuple[nn.Module, torch.optim.Optimizer, Run]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
    keys, optimizer = list(model.state_dict()), torch.optim.AdamW(model.parameters(), lr=0.01)
    run = start(model, optimizer)
    for part, saved in zip(list[Any]((model, optimizer, run)), state, strict=False):
        part.load_state_dict(saved)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(loss(model) + run.penalty())
        optimizer.step()
        run.step()
    _promise(list(model.state_dict()) == keys, f"{type(run).__name__} changed the keys of state_dict")
    return model, optimizer, run


def _photograph(model: nn.Module) -> dict[str, Any]:
    """Everything that a part may not change."""
    seen: dict[str, Any] = {f"state {n}": t.detach().clone() for n, t in model.state_dict().items()}
    for name, p in model.named_parameters():
        seen |= {f"gradient {name}": None if p.grad is None else p.grad.clone(), f"requires {name}": p.requires_grad}
    return seen | {f"mode {name}": module.training for name, module in model.named_modules()}


def _same(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            return torch.equal(one, other)
        return one is other or bool(one == other)

    return before.keys() == after.keys() and all(equal(before[key], after[key]) for key in before)


def _promise(kept: bool, otherwise: str) -> None:
    if not kept:
        raise AssertionError(otherwise)
