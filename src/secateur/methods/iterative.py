"""Iterative magnitude pruning with rewinding: the lottery ticket (Frankle & Carbin 2019; Frankle et al. 2020 for rewinding).

    train; for each round: prune a part of what is left; rewind the survivors; train again

After round r of R the fraction kept is ``(1 - sparsity) ** (r / R)``, so every round removes the same part of what is left.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from torch import Tensor, nn

from secateur.counting import check_sparsity
from secateur.errors import BadSchedule, NeedsTask
from secateur.masks import Masks
from secateur.names import allocation_of, criterion_of, granularity_of, standing
from secateur.notes import describe, notes_on
from secateur.planning import plan
from secateur.profiling.profile import compare, profile
from secateur.protocols import Criterion, Granularity
from secateur.report import Pruned
from secateur.targets import Ignore, find_targets
from secateur.task import Task
from secateur.training.holding import hold

__all__ = ["Iterative"]

Train = Callable[[nn.Module], object]


@final
@dataclass(frozen=True, kw_only=True)
class Iterative:
    """Prune, rewind, retrain, several times.

    Args:
        sparsity: the fraction removed at the end.
        rounds: how often to prune.
        criterion, granularity, scope, min_kept, ignore: as in `Gradual`.
    """

    sparsity: float
    rounds: int = 5
    criterion: str | Criterion = "magnitude"
    granularity: str | Granularity = "unstructured"
    scope: str = "global"
    min_kept: int = 0
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.rounds < 1:
            raise BadSchedule(f"Iterative(rounds={self.rounds}) needs at least one round")

    def __call__(
        self,
        model: nn.Module,
        train: Train,
        *,
        rewind_to: Mapping[str, Tensor] | None = None,
        rewind: bool = True,
        task: Task | None = None,
        example_inputs: Any = None,
        on_round: Callable[[int, Masks], object] | None = None,
    ) -> Pruned:
        """Return a pruned, retrained copy of ``model``, which is expected to be trained already.

        Args:
            model: the trained model; not touched.
            train: ``train(model)`` trains in place with a *fresh* optimizer; pruned weights hold at zero meanwhile.
            rewind_to: a ``state_dict`` from initialisation or early in training, to which survivors go back before each
                training. Without it (and with ``rewind=False``) survivors keep their values: plain iterative fine-tuning.
            rewind: set to False to fine-tune instead of rewinding.
            task: for criteria that need data, and for the receipt.
            example_inputs: for the receipt's MACs and latency.
            on_round: called after each round with its number (from 1) and the masks; for progress bars.

        Raises:
            NeedsTask: rewinding was asked for, but there is nothing to rewind to.
        """
        if rewind and rewind_to is None:
            raise NeedsTask(
                "rewinding needs weights to go back to: keep copy.deepcopy(model.state_dict()) from initialisation and pass it "
                "as rewind_to=, or pass rewind=False to fine-tune from the trained weights"
            )
        before, student = profile(model, example_inputs, task=task), copy.deepcopy(model)
        targets = find_targets(student, ignore=self.ignore)
        masks: Masks | None = None
        for number in range(1, self.rounds + 1):
            masks = self._prune(student, targets, task, number, masks)
            if rewind and rewind_to is not None:
                student.load_state_dict(rewind_to)
            with hold(student, masks):
                train(student)
                masks.apply_(student)
            if on_round:
                on_round(number, masks)
        assert masks is not None
        what = f"iterative over {self.rounds} rounds with {'rewinding' if rewind else 'fine-tuning'}"
        parts = f"{describe(self._criterion())}, {self.granularity}, scope {self.scope}, sparsity {self.sparsity:g}"
        report = compare(
            before, student, example_inputs, task=task, method=f"{what}, {parts}", notes=notes_on(student, masks)
        )
        return Pruned(student, masks, report)

    def _prune(
        self, student: nn.Module, targets: Mapping[str, Any], task: Task | None, number: int, earlier: Masks | None
    ) -> Masks:
        scores = replace(self._criterion()(student, targets, task), facts=targets)
        sparsity = 1 - (1 - self.sparsity) ** (number / self.rounds)
        if number == self.rounds:
            sparsity = self.sparsity  # no rounding at the end
        allocation = allocation_of(self.scope, sparsity, min_kept=self.min_kept)
        fresh = plan(scores, granularity_of(self.granularity), allocation, within=earlier)
        return fresh & earlier if earlier is not None else fresh

    def _criterion(self) -> Criterion:
        return standing(criterion_of(self.criterion))
