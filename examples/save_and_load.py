"""Keep a pruned model: one safetensors file, no pickle, smaller than gzip, loaded back into the original class bit for bit.

python examples/save_and_load.py
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import secateur as sc
from secateur.demo import DigitsNet, digits_task, fit

torch.manual_seed(0)
model, task = DigitsNet(), digits_task()
fit(model, task, epochs=3)
folder = Path(tempfile.mkdtemp())

save_file(model.state_dict(), folder / "dense.safetensors")
dense = (folder / "dense.safetensors").stat().st_size
print(f"dense: {dense:,} bytes")

for sparsity, granularity in ((0.5, "unstructured"), (None, "2:4"), (0.9, "unstructured"), (0.9, "block:2x1")):
    # 2:4 needs input channels that divide by 4, and the first convolution has one.
    pruned = sc.prune(model, sparsity=sparsity, granularity=granularity, ignore=["features.0"])
    file = folder / "pruned.safetensors"
    sc.save(pruned, file)
    again = sc.load(file, DigitsNet()).model
    same = all(torch.equal(a, b) for a, b in zip(pruned.model.parameters(), again.parameters(), strict=True))
    size = file.stat().st_size
    print(
        f"{granularity:>12}, {pruned.masks.sparsity:.0%} removed: {size:7,} bytes, {dense / size:4.1f}x smaller, equal: {same}"
    )
