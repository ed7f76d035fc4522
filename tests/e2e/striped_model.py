"""Writes a compiled model that runs in stripes, an input and its output into a folder: `python tests/e2e/striped_model.py FOLDER`.

The process that ThreadSanitizer watches has no torch to make them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import secateur as sc


def main(folder: Path) -> None:
    """Two chains with rows around each stripe, over two images; rows of 32, so that threads may share the stripes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 12, 1),
        nn.ReLU6(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.Conv2d(12, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(6, 8, 3, padding=1),
    ).eval()
    x = torch.randn(2, 4, 64, 62)
    compiled = sc.compile(model, x, threads=3, stripes=8)
    heads = [step[2] for step in compiled.engine.programs[0].said["steps"] if step[0] == "stripes"]
    assert heads, "nothing runs in stripes"
    assert all((written + 7) // 8 * 8 <= apart for *_, written, apart in heads), "threads do not share these stripes"
    compiled.save(folder / "striped.sc")
    np.save(folder / "x.npy", x.numpy())
    np.save(folder / "y.npy", model(x).detach().numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
