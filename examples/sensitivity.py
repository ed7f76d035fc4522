"""Which layer bears how much, and a sparsity for each layer that is found from it.

python examples/sensitivity.py
"""

import torch

import secateur as sc
from secateur.criteria.magnitude import Magnitude
from secateur.demo import DigitsNet, digits_task, fit

torch.manual_seed(0)
model, task = DigitsNet(), digits_task()
fit(model, task, epochs=8)

curves = sc.sensitivity(model, task, metric="loss")  # the loss is a finer instrument than accuracy
print(curves)
print("\ndrawn to", curves.plot("sensitivity.svg"), "\n")

for sparsity in (0.8, 0.9):
    by_curves = sc.methods.OneShot(criterion=Magnitude(), allocation=curves.allocation(sparsity))(model)
    scores = {"from the curves": task.evaluate(by_curves.model)}
    scores |= {
        scope: task.evaluate(sc.prune(model, sparsity=sparsity, scope=scope).model) for scope in ("global", "erk")
    }
    print(f"{sparsity:.0%} removed: " + ", ".join(f"{name} {score:.1f} %" for name, score in scores.items()))
    print("   ", {name: round(removed, 2) for name, removed in by_curves.masks.sparsities().items()})
