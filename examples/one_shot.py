"""One-shot pruning, honestly: the same sparsity by four rules for "how much where", beside a random control.

python examples/one_shot.py
"""

import torch

import secateur as sc
from secateur.demo import DigitsNet, digits_task, fit

torch.manual_seed(0)
model, task = DigitsNet(), digits_task()
fit(model, task, epochs=8)
print(f"dense: {task.evaluate(model):.1f} %\n")

print("removed   global   layer     erk    lamp   taylor   random")
for sparsity in (0.5, 0.8, 0.9):
    cells = [sc.prune(model, sparsity=sparsity, scope=scope).model for scope in ("global", "layer", "erk", "lamp")]
    cells += [sc.prune(model, method, sparsity=sparsity, task=task).model for method in ("taylor", "random")]
    print(f"{sparsity:>7.0%} " + "".join(f"{task.evaluate(cell):8.1f}" for cell in cells))
