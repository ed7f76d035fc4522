"""The demonstration itself: train, prune both ways, save, load, measure."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from secateur.demo.digits import Batches, DigitsNet, digits_task, fit, loss_of
from secateur.methods.gradual import Gradual
from secateur.profiling.profile import compare
from secateur.profiling.timing import using_threads
from secateur.pruning import prune
from secateur.report import Pruned, Report
from secateur.reporting import html
from secateur.schedules.polynomial import PolynomialDecay
from secateur.sensitivity import sensitivity
from secateur.storage import load, save
from secateur.task import Task

__all__ = ["Demo", "Row", "run_demo"]

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
NARROWER = 0.6  # of the channels of every layer
_EXAMPLE = torch.zeros(1, 1, 8, 8)
Say = Callable[[str, int, int], object]
"""Called as ``say(what happens, steps done, steps in all)``."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Test accuracy in percent at one sparsity, pruned in one shot."""

    sparsity: float
    magnitude: float
    random: float


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demonstration found.

    Args:
        dense_score: accuracy before pruning, in percent.
        rows: one-shot results beside the random control.
        narrow: channels taken out for real, their readers refitted; nothing is trained.
        gradual: pruned while training.
        model_file: what `secateur.save` wrote.
        page: the receipt as a page.
        loaded_equal: the file, loaded into a fresh `DigitsNet`, has the same weights and outputs, bit for bit.
        zeros_held: weights outside the masks are exactly zero after training.
        seconds: for everything.
    """

    dense_score: float
    rows: tuple[Row, ...]
    narrow: Pruned
    gradual: Pruned
    model_file: Path
    page: Path
    loaded_equal: bool
    zeros_held: bool
    seconds: float


def run_demo(folder: Path, *, sparsity: float = 0.9, epochs: int = 12, seed: int = 0, say: Say | None = None) -> Demo:
    """Train, prune, save, load, measure. Writes two files into ``folder``.

    Args:
        folder: where ``digits.safetensors`` and ``receipt.html`` go; made if it is missing.
        sparsity: for gradual pruning and the saved model.
        epochs: of dense training, and again of gradual pruning.
        seed: for initial weights and shuffling.
        say: called as work goes on.

    Raises:
        NeedsPackage: scikit-learn is not installed.
    """
    started, say = time.perf_counter(), say or (lambda *_: None)
    folder.mkdir(parents=True, exist_ok=True)
    model_file, page = folder / "digits.safetensors", folder / "receipt.html"
    with torch.random.fork_rng(devices=[]), using_threads(1):  # layers this small only wait for a second thread
        torch.manual_seed(seed)
        task, model = digits_task(seed=seed), DigitsNet()
        _train_dense(model, task, epochs, say)
        rows = _one_shot(model, task, SPARSITIES, say)
        narrow = _narrow(model, task, say)
        gradual = _gradual(model, task, sparsity=sparsity, epochs=epochs, say=say)
        control = _gradual(model, task, sparsity=sparsity, epochs=epochs, say=say, criterion="random")
        gradual = replace(gradual, report=_side_by_side(model, gradual, control, task))
        curves = sensitivity(
            model, task, on_progress=lambda done, total, layer: say(f"pruning {layer} alone", done, total)
        )
    save(gradual, model_file)
    html.write(gradual.report, page, sensitivity=curves)
    return Demo(
        dense_score=task.needs_evaluate("the demo")(model),
        rows=rows,
        narrow=narrow,
        gradual=gradual,
        model_file=model_file,
        page=page,
        loaded_equal=_same(load(model_file, DigitsNet()).model, gradual.model),
        zeros_held=all(not gradual.model.get_parameter(n)[~m].any() for n, m in gradual.masks.items()),
        seconds=time.perf_counter() - started,
    )


def _train_dense(model: nn.Module, task: Task, epochs: int, say: Say) -> None:
    steps = epochs * _steps(task)
    done = iter(range(1, steps + 1))
    fit(model, task, epochs=epochs, after_step=lambda *_: say("training the dense network", next(done), steps))


def _one_shot(model: nn.Module, task: Task, sparsities: Sequence[float], say: Say) -> tuple[Row, ...]:
    rows, evaluate = [], task.needs_evaluate("the demo")
    for done, sparsity in enumerate(sparsities, start=1):
        score = {name: evaluate(prune(model, name, sparsity=sparsity).model) for name in ("magnitude", "random")}
        rows.append(Row(sparsity=sparsity, magnitude=score["magnitude"], random=score["random"]))
        say("pruning in one shot", done, len(sparsities))
    return tuple(rows)


def _narrow(model: nn.Module, task: Task, say: Say) -> Pruned:
    say("taking channels out", 0, 1)
    few = replace(task, batches=list(task.each_batch("repair"))[:8])
    found = prune(
        model,
        "taylor_map",
        granularity="channel",
        sparsity=NARROWER,
        scope="layer",
        repair=True,
        task=few,
        example_inputs=torch.zeros(64, 1, 8, 8),
    )
    say("taking channels out", 1, 1)
    return found


def _side_by_side(dense: nn.Module, gradual: Pruned, control: Pruned, task: Task) -> Report:
    """Measure both models in turns, so that their latencies saw the same machine, and put the control beside them."""
    measured = compare(
        dense, gradual.model, _EXAMPLE, task=task, method=gradual.report.method, settings=gradual.report.settings
    )
    score = control.report.after.score
    return replace(measured, controls={"random weights, trained alike": score} if score is not None else {})


def _gradual(
    model: nn.Module, task: Task, *, sparsity: float, epochs: int, say: Say, criterion: str = "magnitude"
) -> Pruned:
    student, steps = copy.deepcopy(model), epochs * _steps(task)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    # Pruning ends after two thirds of the training; the rest lets the survivors settle.
    schedule = PolynomialDecay(begin_step=0, end_step=2 * steps // 3, frequency=10)
    method = Gradual(sparsity=sparsity, schedule=schedule, criterion=criterion)
    run = method.start(student, optimizer, total_steps=steps, task=task)
    student.train()
    for _ in range(epochs):
        for batch in task.each_batch("training"):
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(student, batch))
            optimizer.step()
            run.step()
            say(f"pruning while training ({criterion}), {run.sparsity:.0%} removed", run.steps, steps)
    student.eval()
    return run.finish()


def _steps(task: Task) -> int:
    assert isinstance(task.batches, Batches)
    return len(task.batches)


def _same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    example = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs_equal = torch.equal(one.eval()(example), other.eval()(example))
    return outputs_equal and mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
