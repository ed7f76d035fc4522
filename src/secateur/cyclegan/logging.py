"""What a training leaves behind to be looked at: losses and sample pictures, as files and for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import NeedsPackage
from secateur.gradients import evaluating
from secateur.pictures import grid, png
from secateur.replacing import replacing

__all__ = ["Log", "samples"]


class Log:
    """Write losses and samples of a `Run` to a folder.

    Args:
        folder: for ``losses.tsv`` and ``samples/STEP.png``.
        every: steps over which losses are averaged.
        pictures: how many images of each domain a sample shows.
        tensorboard: write both for TensorBoard too, into ``folder/tensorboard``.

    Raises:
        NeedsPackage: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: str | Path, *, every: int = 50, pictures: int = 6, tensorboard: bool = False) -> None:
        self.folder, self.every, self.pictures = Path(folder), every, pictures
        self.folder.mkdir(parents=True, exist_ok=True)
        self.writer = _writer(self.folder / "tensorboard") if tensorboard else None
        self._sums: dict[str, float] = {}
        self._count = 0

    def losses(self, step: int, losses: Mapping[str, float]) -> None:
        """Add the losses of a step; their means are written every so often."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self.every:
            return
        means = {name: value / self._count for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        with (self.folder / "losses.tsv").open("a", encoding="utf-8") as file:
            if not file.tell():
                file.write("\t".join(["step", *means]) + "\n")
            file.write("\t".join([str(step), *(f"{value:.5g}" for value in means.values())]) + "\n")
        if self.writer:
            for name, value in means.items():
                self.writer.add_scalar(f"loss/{name}", value, step)

    def samples(self, run: Any) -> None:
        """Write a grid of pictures of a `Run`: A, made B, A again; B, made A, B again."""
        a, b = run.a.plain(self.pictures).to(run.device), run.b.plain(self.pictures).to(run.device)
        image = grid(samples(run.finish(), a, b))
        target = self.folder / "samples" / f"{run.done:07d}.png"
        target.parent.mkdir(exist_ok=True)
        with replacing(target) as beside:
            beside.write_bytes(png(image))
        if self.writer:
            self.writer.add_image("samples", image, run.done)
            self.writer.flush()


def samples(generators: tuple[torch.nn.Module, torch.nn.Module], a: Tensor, b: Tensor) -> list[Tensor]:
    """Six batches: a, G(a), F(G(a)), b, F(b), G(F(b)); images are ``[n, channels, h, w]`` in [-1, 1]."""
    g, f = generators
    with torch.no_grad(), evaluating(g), evaluating(f):
        fake_b, fake_a = g(a), f(b)
        return [a, fake_b, f(fake_b), b, fake_a, g(fake_a)]


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise NeedsPackage(
            "Log(tensorboard=True) needs TensorBoard, which is not installed: pip install 'secateur[tensorboard]', or leave it out: "
            "losses.tsv and the sample pictures are written without it"
        ) from None
    return SummaryWriter(str(folder))
