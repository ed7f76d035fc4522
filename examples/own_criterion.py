"""A criterion of your own: weights times the size of what they see, from a few calibration batches (as in Wanda).

    score(w) = |w| * norm of the input feature it multiplies         (Sun et al. 2024, eq. 1)

One frozen dataclass with a ``__call__``; nothing is registered and nothing is inherited.

    python examples/own_criterion.py
"""

from dataclasses import dataclass

import torch
from torch import nn

import secateur as sc
from secateur.demo import DigitsNet, digits_task, fit


@dataclass(frozen=True, kw_only=True)
class WeightTimesInput:
    """``|w| * ||x||`` for linear layers; plain ``|w|`` elsewhere. Reads the first ``batches`` batches."""

    batches: int = 4

    def __call__(self, model, targets, task=None):
        squares = {}

        def watch(name):
            def hook(_, inputs):
                squares[name] = squares.get(name, 0) + inputs[0].detach().square().sum(0)

            return hook

        linear = {name: m for name in targets if isinstance(m := model.get_submodule(targets[name].module), nn.Linear)}
        hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in linear.items()]
        with torch.no_grad():
            for _, (images, _labels) in zip(range(self.batches), task.each_batch("WeightTimesInput"), strict=False):
                model(images)
        for hook in hooks:
            hook.remove()
        weights = {name: model.get_parameter(name).detach() for name in targets}
        return sc.Scores({n: w * squares[n].sqrt() if n in squares else w for n, w in weights.items()}, each=torch.abs)


torch.manual_seed(0)
model, task = DigitsNet(), digits_task()
fit(model, task, epochs=8)
print(f"dense {task.evaluate(model):.1f} %")
print("removed   |w|   |w|*||x||   random      (every row of a layer keeps equally many)")
for sparsity in (0.5, 0.7, 0.8):
    scores = [
        task.evaluate(sc.prune(model, method, sparsity=sparsity, granularity="row", scope="layer", task=task).model)
        for method in ("magnitude", WeightTimesInput(), "random")
    ]
    print(f"{sparsity:>7.0%}  {scores[0]:5.1f}   {scores[1]:6.1f}   {scores[2]:8.1f}")
