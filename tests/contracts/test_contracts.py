"""Every file on the shelves is found by its name and held to its role, with the checks that users can call too."""

import pkgutil
from dataclasses import MISSING, fields, replace
from importlib import import_module

import pytest
import torch
from torch import nn

import secateur as sc
import zoo
from secateur import testing
from secateur.allocations.uniform import Uniform
from secateur.criteria.magnitude import Magnitude
from secateur.granularities.unstructured import Unstructured
from secateur.names import find, granularity_of, names_in
from secateur.pricing import Dimension, Part, Pricing
from secateur.protocols import Criterion, LiveCriterion, TrainingMethod
from secateur.scores import Scores

SHELVES = ["criteria", "granularities", "allocations", "schedules", "methods", "costs", "solvers"]
FILES = [
    f"secateur.{shelf}.{file.name}"
    for shelf in SHELVES
    for file in pkgutil.iter_modules(import_module(f"secateur.{shelf}").__path__)
]
GRANULARITIES = [
    "unstructured",
    "row",
    "2:4",
    "1:2",
    "4:8",
    "block:4x1",
    "block:1x4",
    "filter",
    "kernel",
    "input_channel",
    "shape",
]
CRITERIA = [find("criteria", name)() for name in names_in("criteria")]
DRAWN = {"Random", "Obd"}  # what is drawn for a weight goes by its place
STEPS = {"begin_step": 2, "end_step": 11, "frequency": 4}
TRAINED = {  # what methods that train need, by the names of their fields
    "every": 3,
    "batches": 1,
    "end_step": 6,
    "sparsity": 0.6,
    "strength": 0.01,
}


PRICING = (
    Pricing(  # a table for each name, and a price for each of its elements; every granularity has fewer units than that
        parts=tuple(Part(1000, ((name, 0),)) for name in "abc"),
        dimensions=tuple(Dimension((name, 0), 1 << 10, ((name, 1),)) for name in "abc"),
        units=tuple((name, 1 << 10) for name in "abc"),
    )
)
FILLED_IN = {  # what allocations need, by the names of their fields
    "sparsity": 0.5,
    "sparsities": (("*", 0.5),),
    "otherwise": Uniform(sparsity=0.5),
    "allocation": Uniform(sparsity=0.5),
    "multiple": 2,
    "pricing": PRICING,
    "limit": 1500.0,
    "family": Uniform,
    "budget": "energy:80%",
    "prices": tuple((name, ((100.0, 1.0), (float("inf"), 2.0))) for name in "abc"),
    "curves": tuple((name, ((0.3, 1.0), (0.9, 9.0))) for name in "abc"),
    "harms": tuple((name, ((0.0, 0.0), (0.9, 1.0))) for name in "abc"),
}


def allocations():
    """Every allocation on the shelf, ready to count."""
    for name in names_in("allocations"):
        kind = find("allocations", name)
        yield kind(**{f.name: FILLED_IN[f.name] for f in fields(kind) if f.default is MISSING or f.name in FILLED_IN})


def scores():
    return Scores(
        {"a": torch.randn(8, 8), "b": torch.randn(4, 16, 3), "c": torch.randn(16, 8, 2, 2)[:, :, :, :1]}, each=torch.abs
    )


def task_for(x):
    return sc.Task([x, x.flip(0)], loss=zoo.loss_of)


@pytest.mark.parametrize(
    "name", [f"secateur.{shelf}.{f}" for shelf in SHELVES for f in names_in(shelf) if f != "global"]
)
def test_every_file_says_what_it_is(name):
    testing.check_file(name)


@pytest.mark.parametrize("name", ["linear", "conv2d", "transposed_grouped", "lstm", "attention", "tied", "twice"])
@pytest.mark.parametrize("criterion", [c for c in CRITERIA if not isinstance(c, LiveCriterion)], ids=repr)
def test_criteria(criterion, name):
    model, x = zoo.make(name)
    model.train()
    next(model.parameters()).requires_grad_(False)
    zoo.loss_of(model, x).backward()  # gradients that must survive
    testing.check_criterion(criterion, model, task_for(x))


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if isinstance(c, LiveCriterion)], ids=repr)
def test_live_criteria(criterion):
    model, x = zoo.make("conv2d")
    testing.check_live_criterion(criterion, model, lambda model: zoo.loss_of(model, x))


@pytest.mark.parametrize(
    "criterion", [c for c in CRITERIA if isinstance(c, Criterion) and type(c).__name__ not in DRAWN], ids=repr
)
def test_permuting_outputs_permutes_scores(criterion):
    """The same network with its hidden units in another order scores the same, in that order."""
    model, x = zoo.make("linear")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(5))
    twin, _ = zoo.make("linear")
    with torch.no_grad():
        twin[0].weight.copy_(model[0].weight[order])
        twin[0].bias.copy_(model[0].bias[order])
        twin[2].weight.copy_(model[2].weight[:, order])
    targets = {"0.weight": sc.LayerFacts(), "2.weight": sc.LayerFacts()}
    one, other = criterion(model, targets, task_for(x)), criterion(twin, targets, task_for(x))
    torch.testing.assert_close(one.values["0.weight"][order], other.values["0.weight"])
    torch.testing.assert_close(one.values["2.weight"][:, order], other.values["2.weight"])


@pytest.mark.parametrize("text", GRANULARITIES)
def test_granularities(text):
    testing.check_granularity(granularity_of(text), scores())


@pytest.mark.parametrize("text", ["unstructured", "row", "filter"])
@pytest.mark.parametrize("allocation", list(allocations()), ids=lambda a: type(a).__name__)
def test_allocations(allocation, text):
    testing.check_allocation(allocation, granularity_of(text), scores())


@pytest.mark.parametrize("name", names_in("schedules"))
def test_schedules(name):
    testing.check_schedule(schedule_of(name))


@pytest.mark.parametrize("name", names_in("methods"))
def test_methods_are_values(name):
    kind = find("methods", name)
    needed = FILLED_IN | {"criterion": Magnitude()}
    required = {
        f.name: needed[f.name]
        for f in fields(kind)
        if f.name == "allocation" or (f.default is MISSING and f.default_factory is MISSING)
    }
    testing.check_value(kind(**required))


def training_methods():
    """Every method that trains, with every schedule where it takes one."""
    for kind in (find("methods", name) for name in names_in("methods")):
        if issubclass(kind, TrainingMethod):
            known = {f.name for f in fields(kind)}
            options = {key: value for key, value in TRAINED.items() if key in known}
            options |= {f.name: FILLED_IN[f.name] for f in fields(kind) if f.name == "budget" and f.default is MISSING}
            for name in names_in("schedules") if "schedule" in known else [""]:
                more = {"schedule": schedule_of(name)} if name else {}
                yield pytest.param(kind(**options, **more), id=f"{kind.__name__}-{name}")


def schedule_of(name):
    kind = find("schedules", name)
    return kind(**{key: value for key, value in STEPS.items() if key in {f.name for f in fields(kind)}})


@pytest.mark.parametrize("method", list(training_methods()))
def test_training_methods(method):
    x = zoo.make("conv2d")[1]
    of_channels = not hasattr(method, "granularity")
    masks = testing.check_training_method(
        method,
        lambda: zoo.make("conv2d")[0],
        lambda model: zoo.loss_of(model, x),
        steps=12,
        **({"example_inputs": x} if of_channels else {}),
    )
    if not hasattr(method, "sparsity"):
        assert 0 < masks.kept < masks.total  # a budget says how much
    elif of_channels:
        assert masks["0.weight"].flatten(1).any(1).sum() == masks["3.weight"].flatten(2).any(2).any(0).sum() == 3
    else:
        assert masks.kept == round(0.4 * masks.total)


# The checks themselves: a broken promise is noticed and named.


class Rude:
    """Not a value, draws from the global generator, writes to the model."""

    def __call__(self, model, targets, task=None):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return Scores({name: torch.rand(3) for name in targets})


def test_a_part_that_is_no_value_is_named():
    with pytest.raises(AssertionError, match="Rude is no dataclass"):
        testing.check_criterion(Rude(), nn.Linear(2, 2))


def test_broken_promises_are_named(monkeypatch):
    monkeypatch.setattr(testing, "check_value", lambda part: None)
    with pytest.raises(AssertionError, match="changed the model"):
        testing.check_criterion(Rude(), nn.Linear(2, 2))
    falling = replace(sc.Cyclic(begin_step=0, end_step=20, cycles=2, frequency=5), regrows=False)
    with pytest.raises(AssertionError, match="says that it does not regrow"):
        testing.check_schedule(falling)

    class Greedy:
        def __call__(self, units):
            return {name: units.count(name) + 1 for name in units}

    with pytest.raises(AssertionError, match=r"keeps 65 units of 'a'"):
        testing.check_allocation(Greedy(), Unstructured(), scores())
