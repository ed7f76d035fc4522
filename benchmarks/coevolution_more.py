"""Co-evolution beyond the CycleGAN pair: a ready generator, an autoencoder, and how long a search takes.

python -m benchmarks.coevolution_more horse | autoencoder | scaling
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks.coevolution import largest, uniform
from benchmarks.data import load_mnist
from benchmarks.models.cyclegan import Generator
from benchmarks.record import options, record
from secateur.coupling import couple
from secateur.cyclegan import PatchDiscriminator, ResNetGenerator, initialise_
from secateur.evolution import InProcess, Processes, Tuning
from secateur.evolution.spaces import space_of
from secateur.fidelity import lite0
from secateur.names import find
from secateur.pictures import grid, png
from secateur.profiling.timing import measure


def tune_towards_(
    model: nn.Module, dense: nn.Module, inputs: Tensor, *, steps: int, batch: int, lr: float = 1e-3
) -> nn.Module:
    """Train ``model`` to make what ``dense`` makes, by mean absolute difference; Adam, falling linearly to zero."""
    optimizer = torch.optim.Adam(model.train().requires_grad_(True).parameters(), lr=lr, fused=True)
    fade = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    chance = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = inputs[torch.randint(len(inputs), (batch,), generator=chance)]
        with torch.no_grad():
            goal = dense(x)
        optimizer.zero_grad()
        (model(x) - goal).abs().mean().backward()
        optimizer.step()
        fade.step()
    return model.eval()


def rivals(model: nn.Module, x: Tensor, budget: tuple[str, ...], *, round_to: int = 1) -> dict[str, nn.Module]:
    """The same budget with random channels, and with channels of large L1 norm at the same part of every group."""
    space = space_of(
        model, couple(model, x), cost=find("costs", "macs")(), budgets=budget, example_inputs=x, round_to=round_to
    )
    chosen = {"random": space.genomes.random(np.random.default_rng(0)), "l1": uniform(space, largest(space), round_to)}
    return {name: sc.narrow(model, space.masks(bits), x, coupling=space.coupling) for name, bits in chosen.items()}


def horse(args: Any) -> list[dict[str, Any]]:
    """The horse-to-zebra generator of GAN Compression: searched and tuned at 128 pixels, measured at 256."""
    from PIL import Image

    model = Generator()
    model.load_state_dict(torch.load(args.data / "models" / "cyclegan_horse2zebra_compressed_G.pt", weights_only=True))
    model.requires_grad_(False).eval()
    files = sorted((args.data / "imagenet_sample" / "images").glob("*.jpg"))
    files = [f for f in files if 269 <= int(f.name[:4]) <= 386]  # mammals: wolves to elephants, horses among them

    def load(size: int, chosen: list[Path]) -> Tensor:
        found = []
        for file in chosen:
            image = Image.open(file).convert("RGB")
            w, h = image.size
            left, top = (w - 256) // 2, (h - 256) // 2
            image = image.crop((left, top, left + 256, top + 256)).resize((size, size), Image.Resampling.BICUBIC)
            found.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1)
        return torch.stack(found)

    horses = [f for f in files if f.name[:4] in ("0339", "0340", "0345", "0346", "0351", "0353")]
    x = load(128, [f for f in files if f not in horses])
    shown, features, rows = load(256, horses), lite0(128), []
    with torch.no_grad():
        dense = model(shown)
    pictures = [shown, dense]
    for share in args.shares:
        budget = (f"macs:{share}%",)
        method = sc.methods.CoEvolution(
            population=8, generations=6, budget=budget, round_to=8, images=6, tuning=Tuning(steps=2, batch=2),
            starts=("magnitude",), pressure=4, chances=(0.0, 0.6, 0.4),
        )  # fmt: skip
        start = time.perf_counter()
        evolved = method(model, features.network, x[:18]).model
        searched = time.perf_counter() - start
        for name, thin in {"evolved": evolved, **rivals(model, x[:1], budget, round_to=8)}.items():
            tuned = tune_towards_(thin, model, x, steps=args.tune_steps, batch=2)
            with torch.no_grad():
                made = tuned(shown)
                timed = measure([lambda: model(shown[:1]), lambda t=tuned: t(shown[:1])], seconds=3)
            pictures.append(made)
            rows.append({
                "case": "horse2zebra", "budget": share, "name": name, "seconds": searched,
                "params": _size(tuned) / _size(model),
                "macs": sc.profile(tuned, x[:1], seconds=0).macs / sc.profile(model, x[:1], seconds=0).macs,
                "faster": timed[0].median_ms / timed[1].median_ms,
                "off_dense": float((made - dense).abs().mean()), "perceptual": features.perceptual(made, dense),
            })  # fmt: skip
            print(rows[-1], flush=True)
    (args.work / "horse.png").write_bytes(png(grid(pictures)))
    return rows


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Autoencoder(nn.Sequential):
    """28x28 digits to 16 numbers and back, with batch norms; the second half is a DCGAN-like generator."""

    def __init__(self, width: int = 32) -> None:
        down = [nn.Conv2d(1, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
        down += [nn.Conv2d(width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.Flatten()]
        up = [nn.Linear(16, 2 * width * 49), nn.Unflatten(1, (2 * width, 7, 7)), nn.BatchNorm2d(2 * width), nn.ReLU()]
        up += [nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
        up += [nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Tanh()]
        super().__init__(nn.Sequential(*down, nn.Linear(2 * width * 49, 16)), nn.Sequential(*up))


def autoencoder(args: Any) -> list[dict[str, Any]]:
    """An autoencoder of MNIST digits at a quarter of its parameters and multiply-accumulates."""
    split = load_mnist(args.data, mean=0.5, std=0.5)
    torch.manual_seed(0)
    model, chance = Autoencoder(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    steps = 100 if args.quick else 1500
    fade = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        x = split.x_train[torch.randint(len(split.x_train), (64,), generator=chance)]
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()
        fade.step()
    model.requires_grad_(False).eval()
    test, train, rows = split.x_test[:2000], split.x_train[:4000], []

    def error(net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(test) - test).square().mean())

    rows.append({"case": "autoencoder", "name": "dense", "seed": 0, "before": error(model), "after": error(model)})
    budget = ("params:25%", "macs:25%")
    for seed in range(args.seeds):
        method = sc.methods.CoEvolution(
            population=16, generations=15, budget=budget, images=128, tuning=Tuning(steps=3, batch=64), seed=seed,
            starts=("magnitude",), pressure=4, chances=(0.0, 0.6, 0.4),
        )  # fmt: skip
        start = time.perf_counter()
        found = {"evolved": method(model, None, train[:512]).model}
        searched = time.perf_counter() - start
        for name, thin in {**found, **(rivals(model, train[:1], budget) if not seed else {})}.items():
            before = error(thin)
            after = error(tune_towards_(thin, model, train, steps=300, batch=64, lr=2e-3))
            rows.append({"case": "autoencoder", "name": name, "seed": seed, "before": before, "after": after,
                         "params": _size(thin) / _size(model), "seconds": searched})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def scaling(args: Any) -> list[dict[str, Any]]:
    """Seconds of a search against population, generations and workers, for a pair of width 16 at 64 pixels."""
    g = tuple(initialise_(ResNetGenerator(16, 4), seed=k) for k in (0, 1))
    d = tuple(initialise_(PatchDiscriminator(16), seed=k) for k in (2, 3))
    x = tuple(torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in (0, 1))
    rows = []
    cases = ((8, 2, 1), (8, 4, 1), (16, 2, 1), (16, 4, 1), (16, 4, 2))
    for population, generations, workers in cases[:1] if args.quick else cases:
        method = sc.methods.CoEvolution(
            population=population, generations=generations, budget="macs:25%", images=16, chances=(0, 0.5, 0.5)
        )
        executor = Processes(workers=workers) if workers > 1 else InProcess()
        start, done = time.perf_counter(), []
        method(g, d, x, executor=executor, on_generation=done.append)
        seconds = [one["seconds"] for one in done]
        asked = sum(side["evaluations"] for one in done for side in one["sides"])
        rows.append({"case": "scaling", "population": population, "generations": generations, "workers": workers, "seconds": sum(seconds),
                     "later_seconds": seconds[1:], "whole": time.perf_counter() - start, "evaluations": asked})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run what is named."""
    parser = options(__doc__)
    parser.add_argument("cases", nargs="*", default=["horse", "autoencoder", "scaling"])
    parser.add_argument("--work", type=Path, default=Path("coevolution-more"))
    parser.add_argument("--shares", type=int, nargs="*", default=[50, 25])
    parser.add_argument("--tune-steps", type=int, default=200)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for case in args.cases:
        rows = {"horse": horse, "autoencoder": autoencoder, "scaling": scaling}[case](args)
        if not args.quick:
            print(record(f"coevolution_{case}", rows, out=args.out))


if __name__ == "__main__":
    main()
