"""Train a CycleGAN on two unpaired sets of images, or fine-tune a smaller pair under the dense one.

    run = Training(steps=20_000).start(Networks(g_ab, g_ba, d_a, d_b), domain_a, domain_b)
    run.train("folder")          checkpoints, sample grids and a log there; goes on from where it was when called again

Adam with beta1 = 0.5, the learning rate constant and then linearly to zero (Zhu et al. 2017, section 4). What is random depends on
the seed and the step only, so that an interrupted and resumed run ends in the very weights of an uninterrupted one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.checkpoints import read_checkpoint, write_checkpoint
from secateur.cyclegan.averaging import Average
from secateur.cyclegan.images import Images
from secateur.cyclegan.losses import Networks, Weights, discriminator_loss, generator_losses
from secateur.cyclegan.pool import ImagePool
from secateur.errors import BadFile, BadSchedule, WrongModel
from secateur.examples import device_of

__all__ = ["Run", "Training"]


@final
@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train.

    Args:
        steps: batches of each domain.
        batch: images of each domain in one.
        lr: Adam's learning rate; of the discriminators too, unless ``discriminator_lr`` is given.
        constant: the part of the steps before it falls, linearly to zero.
        betas: of Adam.
        weights: of the terms.
        pool: earlier fakes that each discriminator is shown.
        average: decay of the averaged generators, which `Run.finish` gives back; 0 gives the last ones.
        seed: of everything that is random.
    """

    steps: int
    batch: int = 1
    lr: float = 2e-4
    discriminator_lr: float | None = None
    constant: float = 0.5
    betas: tuple[float, float] = (0.5, 0.999)
    weights: Weights = field(default_factory=Weights)
    pool: int = 50
    average: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.constant <= 1:
            raise BadSchedule(
                f"Training(steps={self.steps}, batch={self.batch}, constant={self.constant}) needs a step, a batch and a constant in [0, 1]"
            )

    def start(
        self,
        networks: Networks,
        domain_a: Images | Tensor | str | Path,
        domain_b: Images | Tensor | str | Path,
        *,
        teachers: tuple[nn.Module, nn.Module] | None = None,
    ) -> "Run":
        """Begin; the networks are trained in place.

        Args:
            networks: the generators and discriminators.
            domain_a: `Images`, a folder, or a tensor ``[n, 3, h, w]``.
            domain_b: likewise.
            teachers: generators whose outputs are to be resembled, by ``weights.teacher``.
        """
        a, b = (d if isinstance(d, Images) else Images(d) for d in (domain_a, domain_b))
        return Run(self, networks, a, b, teachers)

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied with at a step.

        >>> [Training(steps=4).rate(step) for step in range(4)]
        [1.0, 1.0, 1.0, 0.5]
        """
        begin = round(self.steps * self.constant)
        return min(1.0, (self.steps - step) / max(self.steps - begin, 1))


class Run:
    """A training on its way; `Training.start` makes it."""

    def __init__(
        self,
        training: Training,
        networks: Networks,
        domain_a: Images,
        domain_b: Images,
        teachers: tuple[nn.Module, nn.Module] | None,
    ) -> None:
        self.training, self.networks, self.a, self.b, self.teachers = training, networks, domain_a, domain_b, teachers
        self.device = device_of(networks.g_ab) or torch.device("cpu")
        self.done = 0
        g, d = (networks.g_ab, networks.g_ba), (networks.d_a, networks.d_b)
        self.generators = self._adam(g, training.lr)
        self.discriminators = self._adam(d, training.discriminator_lr or training.lr)
        self.averages = [Average(model, training.average) for model in g]
        self.pools = [ImagePool(training.pool, seed=training.seed + k) for k in range(2)]

    def step(self) -> dict[str, float]:
        """One step of the generators and one of the discriminators; the losses by name.

        Raises:
            WrongModel: a loss is not finite.
        """
        training, nets = self.training, self.networks
        for group in (*self.generators.param_groups, *self.discriminators.param_groups):
            group["lr"] = group["initial_lr"] * training.rate(self.done)
        a, b = (
            images.batch(self.done, training.batch, seed=2 * training.seed + k).to(self.device)
            for k, images in enumerate((self.a, self.b))
        )
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(training.seed * 1_000_003 + self.done)  # for dropout
            for model in nets:
                model.train()
            judges = [p for d in (nets.d_a, nets.d_b) for p in d.parameters() if p.requires_grad]
            for p in judges:
                p.requires_grad_(False)
            terms, fake_b, fake_a = generator_losses(nets, a, b, training.weights, self.teachers)
            self._descend(self.generators, sum(terms.values(), torch.zeros((), device=self.device)))
            for p in judges:
                p.requires_grad_(True)
            judged = discriminator_loss(nets.d_a, a, self.pools[0].exchange(fake_a)) + discriminator_loss(
                nets.d_b, b, self.pools[1].exchange(fake_b)
            )
            self._descend(self.discriminators, judged)
        for mean, model in zip(self.averages, (nets.g_ab, nets.g_ba), strict=True):
            mean.update(model)
        self.done += 1
        losses = {name: float(term.detach()) for name, term in terms.items()} | {
            "discriminators": float(judged.detach())
        }
        if not all(abs(loss) < float("inf") for loss in losses.values()):
            raise WrongModel(f"a loss is not finite at step {self.done}: {losses}; lower lr={training.lr}")
        return losses

    def train(
        self,
        folder: str | Path | None = None,
        *,
        every: int = 500,
        until: int | None = None,
        on_step: Callable[[int, Mapping[str, float]], object] | None = None,
        log: Any = None,
    ) -> "Run":
        """Run to the end, or to step ``until``, from where ``folder`` says that it was.

        Args:
            folder: for ``run.safetensors``; None: keep nothing.
            every: steps between checkpoints.
            until: stop early, to go on later.
            on_step: called with the number of the step and its losses.
            log: a `secateur.cyclegan.Log`, which is given losses and, at every checkpoint, sample pictures.
        """
        file = None if folder is None else Path(folder) / "run.safetensors"
        if file is not None and file.exists() and not self.done:
            self.load_state_dict(read_checkpoint(file))
        last = min(until or self.training.steps, self.training.steps)
        while self.done < last:
            losses = self.step()
            if on_step:
                on_step(self.done, losses)
            if log:
                log.losses(self.done, losses)
            if self.done % every == 0 or self.done == last:
                if file is not None:
                    write_checkpoint(file, self.state_dict())
                if log:
                    log.samples(self)
        return self

    def finish(self) -> tuple[nn.Module, nn.Module]:
        """The generators, averaged if the training averages, in eval mode."""
        nets = self.networks
        pair = [mean.model for mean in self.averages] if self.training.average else [nets.g_ab, nets.g_ba]
        return pair[0].eval(), pair[1].eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "training": repr(self.training),
            "done": self.done,
            "networks": [dict(model.state_dict()) for model in self.networks],
            "optimizers": [self.generators.state_dict(), self.discriminators.state_dict()],
            "averages": [{"steps": mean.steps, "model": dict(mean.model.state_dict())} for mean in self.averages],
            "pools": [pool.state_dict() for pool in self.pools],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken.

        Raises:
            BadFile: it is of another training.
        """
        if state["training"] != repr(self.training):
            raise BadFile(f"the checkpoint is of {state['training']}, not of {self.training!r}; use another folder")
        self.done = state["done"]
        for model, found in zip(self.networks, state["networks"], strict=True):
            model.load_state_dict(found)
        for optimizer, found in zip((self.generators, self.discriminators), state["optimizers"], strict=True):
            optimizer.load_state_dict(found)
        for mean, found in zip(self.averages, state["averages"], strict=True):
            mean.steps = found["steps"]
            mean.model.load_state_dict(found["model"])
        for pool, found in zip(self.pools, state["pools"], strict=True):
            pool.load_state_dict(found)

    def _adam(self, models: tuple[nn.Module, nn.Module], lr: float) -> torch.optim.Adam:
        optimizer = torch.optim.Adam(
            [p for m in models for p in m.parameters()], lr=lr, betas=self.training.betas, fused=True
        )
        for group in optimizer.param_groups:
            group["initial_lr"] = lr
        return optimizer

    @staticmethod
    def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
