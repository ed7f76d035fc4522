"""Run a recipe: build what its dotted paths name, prune in one shot or while training, measure."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import BadRecipe, WrongModel
from secateur.methods.gradual import Gradual
from secateur.names import build, dotted, find
from secateur.profiling.profile import profile
from secateur.pruning import prune
from secateur.recipe.inputs import example_inputs_of
from secateur.recipe.options import method_named, schedule_named, works_by_name
from secateur.recipe.schema import PruneSection, Recipe, TaskSection, TrainSection
from secateur.report import Pruned
from secateur.storage import load as load_packed
from secateur.task import Task
from secateur.training.recalibration import recalibrate_

__all__ = ["Progress", "build_task", "run", "trained_model"]

Progress = Callable[[str, int, int | None], object]
"""Called as ``progress(what happens, steps done, steps in all if known)``."""
_CHANNEL_WORDS = {"round_to", "heads", "norms", "repair", "fallback", "cost_weight"}


def run(recipe: Recipe, progress: Progress | None = None) -> Pruned:
    """Do what ``recipe`` says; nothing is written.

    Args:
        recipe: see `load`.
        progress: called after every training step, and after every block or stage of a method that takes long.

    Raises:
        SecateurError: see `secateur.prune` and `secateur.methods.Gradual`.
        BadRecipe: a dotted path gives something of the wrong kind.
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.train.seed if recipe.train else recipe.prune.seed)
        model = trained_model(recipe.model.path, recipe.model.weights)
        task, inputs = build_task(recipe.task), example_inputs_of(recipe.model.example_inputs)
        if recipe.train:
            pruned = _gradual(recipe.prune, recipe.train, model, task=task, inputs=inputs, progress=progress)
        else:
            pruned = _at_once(recipe.prune, model, task=task, inputs=inputs, progress=progress)
        return _recalibrated(pruned, task, inputs) if recipe.prune.recalibrate else pruned


def trained_model(path: str, weights: str | None = None) -> nn.Module:
    """Build the model that ``path`` names and give it its trained ``weights``.

    Raises:
        BadRecipe: the path gives no module.
        WrongModel: the weights do not fit it.
        BadFile: the weights are damaged.
    """
    made = dotted(path)
    if callable(made) and not isinstance(made, nn.Module):
        made = made()
    if not isinstance(made, nn.Module):
        raise BadRecipe(
            f"{path!r} gives {type(made).__name__}; it has to be an nn.Module or a function that returns one"
        )
    return _with_weights(made, Path(weights)) if weights else made


def build_task(section: TaskSection) -> Task:
    """Import what the table names."""
    found = {key: dotted(path) for key, path in section.model_dump(exclude_none=True).items()}
    return Task(**found)


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    if path.suffix == ".safetensors":
        return load_packed(path, model).model
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    state: Any = found.get("state_dict", found.get("model", found)) if isinstance(found, dict) else found
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WrongModel(f"the weights in {str(path)!r} do not fit {type(model).__name__}: {reason}") from error
    return model


def _at_once(what: PruneSection, model: nn.Module, *, task: Task, inputs: Any, progress: Progress | None) -> Pruned:
    words: dict[str, Any] = what.model_dump(exclude={"method", "recalibrate", "options"}, exclude_defaults=True)
    method: Any = method_named(what.method)
    if not works_by_name(method):
        return prune(model, _criterion(what), task=task, example_inputs=inputs, **words)
    words |= what.options
    if progress and "progress" in method.__dataclass_fields__:
        words["progress"] = lambda done, total, part, _left: progress(part, done, total)
    return prune(model, what.method, task=task, example_inputs=inputs, **words)


def _gradual(
    what: PruneSection, training: TrainSection, model: nn.Module, *, task: Task, inputs: Any, progress: Progress | None
) -> Pruned:
    name, fields = schedule_named(dict(training.schedule))
    words: dict[str, Any] = what.model_dump(
        exclude={"method", "recalibrate", "options", "seed", "budget", "runtime"} | _CHANNEL_WORDS, exclude_none=True
    )
    schedule = build(find("schedules", name), fields, f"schedule {name!r}")
    method = Gradual(criterion=_criterion(what), schedule=schedule, **words)
    optimizer = dotted(training.optimizer)(model.parameters(), **training.optimizer_options)
    source = dotted(training.batches)
    batches = source() if callable(source) else source
    total = training.epochs * len(batches) if hasattr(batches, "__len__") else None
    model.eval()  # for the score before
    work = method.start(model, optimizer, total_steps=total, task=task, example_inputs=inputs)
    loss = task.needs_loss("training")
    with _training(model):
        for batch in chain.from_iterable(_fresh(source) for _ in range(training.epochs)):
            optimizer.zero_grad()
            torch.autograd.backward(loss(model, batch))
            optimizer.step()
            work.step()
            if progress:
                progress(f"training, {work.sparsity:.1%} removed", work.steps, total)
    return work.finish()


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


def _fresh(source: Any) -> Iterable[Any]:
    fresh: Iterable[Any] = source() if callable(source) else source
    return fresh


def _criterion(what: PruneSection) -> Any:
    """The criterion, of ours or of the user's, with its options."""
    found = find("criteria", what.method)
    if not isinstance(found, type):
        if what.options:
            raise BadRecipe(f"prune.options: {what.method!r} is an object, not a class, and takes no options")
        return found
    seeded = {"seed": what.seed} if "seed" in getattr(found, "__dataclass_fields__", {}) else {}
    return build(found, seeded | what.options, f"method {what.method!r}")


def _recalibrated(pruned: Pruned, task: Task, inputs: Any) -> Pruned:
    refreshed = recalibrate_(pruned.model, task.each_batch("recalibrate"))
    after = profile(pruned.model, inputs, task=task)
    note = f"Statistics of {refreshed} batch-norm layer(s) were refreshed after pruning"
    return replace(pruned, report=replace(pruned.report, after=after, notes=(*pruned.report.notes, note)))
