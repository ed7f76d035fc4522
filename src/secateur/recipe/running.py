"""Run a recipe: build what its dotted paths name, prune in one shot or while training, measure."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import BadRecipe, WrongModel
from secateur.methods.gradual import Gradual, GradualRun
from secateur.names import build, dotted, find
from secateur.profiling import profile
from secateur.pruning import prune
from secateur.recalibration import recalibrate_
from secateur.recipe.inputs import example_inputs_of
from secateur.recipe.options import schedule_named
from secateur.recipe.schema import Recipe, TaskSection, TrainSection
from secateur.report import Pruned
from secateur.storage import load as load_packed
from secateur.task import Task

__all__ = ["Progress", "build_task", "run", "trained_model"]

Progress = Callable[[int, int | None, float], object]
"""Called as ``progress(steps done, steps in all if known, sparsity now)``."""


def run(recipe: Recipe, progress: Progress | None = None) -> Pruned:
    """Do what ``recipe`` says; nothing is written.

    Args:
        recipe: see `load`.
        progress: called after every training step.

    Raises:
        SecateurError: see `secateur.prune` and `secateur.methods.Gradual`.
        BadRecipe: a dotted path gives something of the wrong kind.
    """
    model = trained_model(recipe.model.path, recipe.model.weights)
    task, inputs = build_task(recipe.task), example_inputs_of(recipe.model.example_inputs)
    if recipe.train is not None:
        pruned = _gradual(recipe, recipe.train, model, task=task, inputs=inputs, progress=progress)
    else:
        what = recipe.prune
        words: dict[str, Any] = what.model_dump(exclude={"method", "recalibrate", "options"}) | what.options
        pruned = prune(model, _object_or_name(what.method), task=task, example_inputs=inputs, **words)
    return _recalibrated(pruned, recipe, task, inputs)


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


def _gradual(
    recipe: Recipe, training: TrainSection, model: nn.Module, *, task: Task, inputs: Any, progress: Progress | None
) -> Pruned:
    what = recipe.prune
    criterion = _object_or_name(what.method)
    if isinstance(criterion, str):
        criterion = _criterion(criterion, dict(what.options), what.seed)
    name, fields = schedule_named(dict(training.schedule))
    method = Gradual(
        sparsity=what.sparsity,
        schedule=build(find("schedules", name), fields, f"schedule {name!r}"),
        criterion=criterion,
        granularity=what.granularity,
        scope=what.scope,
        overrides=what.overrides,
        min_kept=what.min_kept,
        ignore=what.ignore,
        include_bias=what.include_bias,
    )
    optimizer = dotted(training.optimizer)(model.parameters(), **training.optimizer_options)
    source = dotted(training.batches)
    total = training.epochs * len(source) if hasattr(source, "__len__") else None
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        work = method.start(model, optimizer, total_steps=total, task=task, example_inputs=inputs)
        _train(
            work,
            optimizer,
            source,
            epochs=training.epochs,
            loss=task.needs_loss("training"),
            report=_teller(progress, total),
        )
    return work.finish()


def _train(
    work: GradualRun,
    optimizer: Any,
    source: Any,
    *,
    epochs: int,
    loss: Callable[..., Any],
    report: Callable[[GradualRun], object],
) -> None:
    with _training(work.model):
        for _ in range(epochs):
            for batch in _fresh(source):
                optimizer.zero_grad()
                loss(work.model, batch).backward()
                optimizer.step()
                work.step()
                report(work)


def _teller(progress: Progress | None, total: int | None) -> Callable[[GradualRun], object]:
    return lambda work: progress(work.steps, total, work.sparsity) if progress else None


@contextmanager
def _training(model: nn.Module) -> Any:
    model.train()
    try:
        yield
    finally:
        model.eval()


def _fresh(source: Any) -> Iterable[Any]:
    fresh: Iterable[Any] = source() if callable(source) else source
    return fresh


def _object_or_name(name: str) -> Any:
    """A criterion of the user's as an object; one of ours stays a name."""
    if ":" not in name:
        return name
    found = dotted(name)
    return found() if isinstance(found, type) else found


def _criterion(name: str, options: dict[str, Any], seed: int) -> Any:
    found = find("criteria", name)
    if "seed" in getattr(found, "__dataclass_fields__", {}):
        options = {"seed": seed} | options
    return build(found, options, f"method {name!r}")


def _recalibrated(pruned: Pruned, recipe: Recipe, task: Task, inputs: Any) -> Pruned:
    if not recipe.prune.recalibrate:
        return pruned
    refreshed = recalibrate_(pruned.model, task.each_batch("recalibrate"))
    after = profile(pruned.model, inputs, task=task)
    note = f"Statistics of {refreshed} batch-norm layer(s) were refreshed after pruning"
    return replace(pruned, report=replace(pruned.report, after=after, notes=(*pruned.report.notes, note)))
