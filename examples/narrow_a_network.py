"""Narrow a convolutional network by half of its channels, train on with the same optimizer, save, and load it again.

python examples/narrow_a_network.py
"""

import copy
import tempfile
from pathlib import Path

import torch

import secateur as sc
from secateur.demo import DigitsNet, digits_task, fit

torch.manual_seed(0)
model, task = DigitsNet(), digits_task()
fit(model, task, epochs=8)
example = next(iter(task.each_batch("narrow")))[0][:1]
print(f"dense              {task.evaluate(model):5.1f} %")

# What hangs together, and why the rest stays
coupling = sc.couple(model, example)
for group in coupling.groups():
    print(f"  {group}")
print(coupling.explain(list(dict(model.named_parameters()))[-1]))

# One call: a smaller network of the same class, and masks on the names of the original
pruned = sc.prune(
    model, "taylor", granularity="channel", sparsity=0.5, scope="layer", task=task, example_inputs=example
)
masked = pruned.masks.apply_(copy.deepcopy(model))
print(f"narrowed by half   {task.evaluate(pruned.model):5.1f} %   masked {task.evaluate(masked):5.1f} %")

# Trained on
fit(pruned.model, task, epochs=4)
print(f"and trained on     {task.evaluate(pruned.model):5.1f} %")
print(f"parameters {pruned.report.before.params:,} -> {pruned.report.after.params:,}")

# Saved without pickle, loaded into a fresh instance of the original class
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "narrow.safetensors"
    sc.save(pruned, path)
    again = sc.load(path, DigitsNet()).model
    print(f"loaded, {path.stat().st_size:,} bytes  {task.evaluate(again):5.1f} %")
