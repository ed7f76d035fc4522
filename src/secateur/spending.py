"""A budget for single weights: what they cost on this model, as an allocation, and what came of it."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from secateur.allocations.priced import Priced
from secateur.budget_of_errors import cost_of
from secateur.budgets import Budget, spelled
from secateur.errors import NeedsTask, UnknownName
from secateur.names import budget_of
from secateur.protocols import Cost, WeightCost

__all__ = ["Spending"]


class Spending:
    """What a model's weights cost under a budget.

    Args:
        model: dense, or as it is now: zeros cost nothing.
        budget: such as ``"energy:40%"``; of a cost that knows what single weights cost.
        example_inputs: the model is run on them.
        cost: the cost itself, with parameters of its own; None: the one that the budget names.
        masks_only: whether the method cannot take whole channels out, so that 'macs' and 'params' are those of weights that are not zero.

    Raises:
        UnknownName: the budget is not understood, or its cost is one of whole channels.
        NeedsTask: no ``example_inputs``.
    """

    def __init__(
        self,
        model: nn.Module,
        budget: str,
        example_inputs: Any,
        cost: Cost | None = None,
        *,
        masks_only: bool = False,
    ) -> None:
        self.budget, named = budget_of(budget) if cost is None else (Budget.of(budget), cost)
        if not isinstance(named, WeightCost) or not (named.of_masks or masks_only):
            raise UnknownName(
                f"budget={budget!r} is one of whole channels: pass granularity='channel', which takes them out for real. Single weights take "
                "sparsity=, or a budget whose cost counts them, such as 'energy:40%'; with the method 'layer_obs' also 'macs:40%' and 'params:40%'"
            )
        if example_inputs is None:
            raise NeedsTask(
                f"budget={budget!r} is counted while the model runs: pass example_inputs=, e.g. torch.randn(1, 1, 28, 28)"
            )
        self.cost, self.example_inputs = named, example_inputs
        self.dense = named.of_nonzeros(model, example_inputs)
        self.limit = self.budget.limit(self.dense)
        self.fixed, self.prices = named.of_weights(model, example_inputs)
        self._kept = {name: int(model.get_parameter(name).count_nonzero()) for name in self.prices}

    def allocation(
        self,
        names: Iterable[str],
        limit: float | None = None,
        *,
        power: float = 2.0,
        exact: bool = False,
        min_kept: int = 0,
    ) -> Priced:
        """What stays of ``names`` within ``limit`` (None: the budget); everything else stays and is paid for."""
        chosen = set(names)
        others = sum(cost_of(steps, self._kept[name]) for name, steps in self.prices.items() if name not in chosen)
        return Priced(
            prices=tuple((name, steps) for name, steps in self.prices.items() if name in chosen),
            limit=self.limit if limit is None else limit,
            fixed=self.fixed + others,
            power=power,
            exact=exact,
            min_kept=min_kept,
        )

    def spent(self, model: nn.Module) -> float:
        """What the model costs as it is."""
        return self.cost.of_nonzeros(model, self.example_inputs)

    def says(self, model: nn.Module) -> str:
        """Asked against achieved, in a sentence."""
        now, unit = self.spent(model), self.cost.unit
        return (
            f"Budget: at most {spelled(self.limit, unit)} {self.budget.cost} were asked for ({self.limit / self.dense:.1%} of the dense "
            f"model's {spelled(self.dense, unit)}), {spelled(now, unit)} are left ({now / self.dense:.1%}); {self.cost.where}"
        )
