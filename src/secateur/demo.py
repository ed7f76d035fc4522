"""The demonstration: a small network on scikit-learn's digits, trained, pruned both ways, saved, loaded and measured.

Everything a visitor wants to know once: does accuracy hold, does it beat a random control, does the file shrink, do zeros
survive training, does the file load into the original class bit for bit, and did anything get faster? (Masks alone: no.)
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from secateur.errors import NeedsPackage
from secateur.methods.gradual import Gradual
from secateur.profiling import compare
from secateur.pruning import prune
from secateur.report import Pruned, Report
from secateur.schedules.polynomial import PolynomialDecay
from secateur.storage import load, save
from secateur.task import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Batches", "Demo", "DigitsNet", "Row", "digits", "digits_task", "fit", "run_demo"]

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
_EXAMPLE = torch.zeros(1, 1, 8, 8)
Say = Callable[[str, int, int], object]
"""Called as ``say(what happens, steps done, steps in all)``."""


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers for 8x8 images: 85,066 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[batch, 10]`` of ``images`` ``[batch, 1, 8, 8]``."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


@final
class Batches:
    """A re-iterable of ``(images, labels)``; every pass is shuffled anew from ``seed`` on."""

    def __init__(self, images: Tensor, labels: Tensor, *, size: int = 64, seed: int = 0) -> None:
        self.images, self.labels, self.size = images, labels, size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self._generator)
        for rows in torch.split(order, self.size):
            yield self.images[rows], self.labels[rows]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, then test ones: 1,347 and 450 images ``[1, 8, 8]`` in [0, 1], split evenly by class.

    Raises:
        NeedsPackage: scikit-learn, which ships the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise NeedsPackage(
            "the digits come with scikit-learn, which is missing: pip install 'secateur[demo]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_images, test_images = (
        torch.tensor(part, dtype=torch.float32).div(16).view(-1, 1, 8, 8) for part in parts[:2]
    )
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return train_images, train_labels, test_images, test_labels


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of ``model`` on ``batch``."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def digits_task(*, seed: int = 0) -> Task:
    """Training batches, cross-entropy, and accuracy on the test images in percent."""
    train_images, train_labels, test_images, test_labels = digits()

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        training = model.training
        model.eval()
        hits = int((model(test_images).argmax(1) == test_labels).sum())
        model.train(training)
        return 100 * hits / len(test_labels)

    return Task(Batches(train_images, train_labels, seed=seed), loss=loss_of, evaluate=accuracy)


def fit(
    model: nn.Module,
    task: Task,
    *,
    epochs: int,
    after_step: Callable[[nn.Module, torch.optim.Optimizer], object] | None = None,
) -> None:
    """Train ``model`` in place with AdamW on the task's batches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(epochs):
        for batch in task.each_batch("training"):
            optimizer.zero_grad()
            torch.autograd.backward(task.needs_loss("training")(model, batch))
            optimizer.step()
            if after_step:
                after_step(model, optimizer)
    model.eval()


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
        gradual: pruned while training.
        model_file: what `secateur.save` wrote.
        page: the receipt as a page.
        loaded_equal: the file, loaded into a fresh `DigitsNet`, has the same weights and outputs, bit for bit.
        zeros_held: weights outside the masks are exactly zero after training.
        seconds: for everything.
    """

    dense_score: float
    rows: tuple[Row, ...]
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
    from secateur.reporting import html

    started, say = time.perf_counter(), say or (lambda *_: None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task, model = digits_task(seed=seed), DigitsNet()
        _train_dense(model, task, epochs, say)
        rows = _one_shot(model, task, SPARSITIES, say)
        gradual = _gradual(model, task, sparsity=sparsity, epochs=epochs, say=say)
        control = _gradual(model, task, sparsity=sparsity, epochs=epochs, say=say, criterion="random")
    gradual = replace(gradual, report=_side_by_side(model, gradual, control, task))
    folder.mkdir(parents=True, exist_ok=True)
    model_file, page = folder / "digits.safetensors", folder / "receipt.html"
    save(gradual, model_file)
    html.write(gradual.report, page)
    return Demo(
        dense_score=task.needs_evaluate("the demo")(model),
        rows=rows,
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


def _one_shot(model: nn.Module, task: Task, sparsities: "Sequence[float]", say: Say) -> tuple[Row, ...]:
    rows, evaluate = [], task.needs_evaluate("the demo")
    for done, sparsity in enumerate(sparsities, start=1):
        score = {name: evaluate(prune(model, name, sparsity=sparsity).model) for name in ("magnitude", "random")}
        rows.append(Row(sparsity=sparsity, magnitude=score["magnitude"], random=score["random"]))
        say("pruning in one shot", done, len(sparsities))
    return tuple(rows)


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
