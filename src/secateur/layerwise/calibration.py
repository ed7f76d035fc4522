"""A network under layer-wise surgery: stages one after the other, each listened to, operated on, and passed through.

The dense network and the pruned one run side by side where the dense one is asked for. After each stage its weights, masks and
errors can be written down, so that a killed run takes up at the next stage: the data then run through the finished blocks once more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.curvatures.vetting import refuse_constant
from secateur.facts import LayerFacts
from secateur.granularities.unstructured import Unstructured
from secateur.layerwise.block_tuning import Tuning, tune_
from secateur.layerwise.done import Done
from secateur.layerwise.holdout import HELD_OUT, damping_of
from secateur.layerwise.importance import importance_of
from secateur.layerwise.inflow import as_rows, from_rows
from secateur.layerwise.journal import Journal, fingerprint
from secateur.layerwise.listening_in import alike, bias_step, chosen_places, imitated, noting, row_of, shared_moments
from secateur.layerwise.moments import Moments
from secateur.layerwise.named_blocks import chosen_chain
from secateur.layerwise.quota import Quota
from secateur.layerwise.staging import Stage, stages_of
from secateur.layerwise.streaming import Pair, Stream
from secateur.layerwise.surgery import CONTROLS, operate
from secateur.layerwise.ties import bias_of, paths_of, uses_of
from secateur.protocols import Granularity
from secateur.task import Task

__all__ = ["Calibration", "Settings"]


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """How layers are operated on; see `secateur.methods.layer_obs.LayerObs`."""

    granularity: Granularity = field(default_factory=Unstructured)
    solver: str = "columns"
    refit: bool = True
    targets: str = "own"
    order: str = "layers"
    damping: float | str = 0.01
    block: int = 128
    samples: int = 1 << 16
    blocks: tuple[str, ...] | None = None
    tuning: Tuning | None = None
    folder: str | None = None
    lean: bool = False
    seed: int = 0
    progress: Callable[[int, int, str, float], object] | None = None


class Calibration:
    """A dense model, the weights that are pruned, and the batches."""

    def __init__(self, model: nn.Module, targets: Mapping[str, LayerFacts], task: Task, settings: Settings) -> None:
        self.model, self.targets, self.task, self.settings = model, dict(targets), task, settings
        self.batches = list(task.each_batch("layer-wise surgery"))
        refuse_constant(self.batches)
        self.uses = uses_of(model, targets)
        self.owner = {use: name for name, uses in self.uses.items() for use in uses}
        self.paths = list(dict.fromkeys(facts.module for facts in targets.values()))
        self.chain = chosen_chain(model, settings.blocks, self.batches, task)
        families = {path: paths_of([use for name in self._of(path) for use in self.uses[name]]) for path in self.paths}
        self.stages, self.heard = stages_of(model, self.paths, self.chain, self.batches, task, families=families)
        staged = [path for stage in self.stages for group in stage.groups for path in group]
        self.silent = [name for name in targets if targets[name].module not in staged]
        self.first = next(iter(staged), "")
        self.importance: dict[str, Tensor] = {}
        self.imitates = settings.targets == "dense" and settings.solver not in CONTROLS  # which move nothing

    def inputs(self) -> Sequence[Any]:
        """The batches, for other passes."""
        return self.batches

    def said(self) -> tuple[str, ...]:
        """What the reader should know."""
        idle = dict.fromkeys(self.targets[name].module for name in self.silent)
        return (f"Never run on these batches, so pruned by magnitude: {', '.join(idle)}",) if idle else ()

    @property
    def labelled(self) -> bool:
        """Whether a loss, which may know labels, has weighed the errors."""
        return bool(self.importance) and self.task.loss is not None

    def hears(self, name: str) -> bool:
        """Whether the layer of this parameter runs on the batches."""
        return name not in self.silent

    def weigh(self) -> None:
        """Errors count by what they do to the network (`secateur.layerwise.importance`), also between the rows of a layer, from here on."""
        if not self.importance:
            self.importance = importance_of(
                self.model, self.targets, self.task, self.batches, seed=self.settings.seed, uses=self.uses
            )

    def journal(self, counts: Mapping[str, int]) -> Journal:
        """What is finished of this run.

        Raises:
            BadFile: its folder belongs to another one.
        """
        plain = replace(self.settings, folder=None, progress=None, lean=False)
        held = [*self.model.state_dict().values(), *tree_leaves(self.batches)]
        run = fingerprint(f"{plain} {dict(counts)} {len(self.batches)}", held) if self.settings.folder else ""
        return Journal(self.settings.folder, run, lean=self.settings.lean)

    def operate_(self, pruned: nn.Module, counts: Mapping[str, int], journal: Journal | None = None) -> Done:
        """Prune ``pruned`` in place, a copy of the dense model, keeping ``counts`` units of each parameter."""
        done, journal = Done(), journal or self.journal(counts)
        began, working = time.monotonic(), 0
        streams = self._pair(pruned)
        for at, stage in enumerate(self.stages):
            key = f"{at:04d}"
            if journal.has(key):
                journal.restore(key, pruned, done)
            else:
                self._stage(stage, streams, pruned, counts, done)
                tuned = stage.block if self.settings.tuning and stage.groups else ""
                if self.settings.tuning and tuned:
                    change = tune_(stage, streams.now, streams.dense, done.masks, self.settings.tuning)
                    done.blocks.append({"name": stage.block, "before_tuning": change[0], "after": change[1]})
                working += 1
                journal.write(key, pruned, done, self._names(stage), tuned)
            streams.passed(stage)
            if self.settings.progress:
                left = (time.monotonic() - began) / max(working, 1) * (len(self.stages) - at - 1)
                self.settings.progress(at + 1, len(self.stages), stage.block or "the network", left)
        for name in self.silent:
            self._without_data(name, pruned, counts[name], done)
        done.rows.sort(key=lambda row: list(self.targets).index(row["name"]))
        return done

    def curves(self, look: Callable[[str, Tensor, list[Tensor], float], None], share: float) -> None:
        """Go through the dense network once and show every parameter's rows, Hessians and damping at ``share`` kept to ``look``."""
        streams = self._pair(self.model)
        for stage in self.stages:
            moments = self._moments(stage, [p for g in stage.groups for p in g], streams, both=False)
            for name, found in moments.items():
                rows = as_rows(self.model.get_parameter(name).detach(), self.targets[name], found.groups)
                centred = bias_of(self.model, self.uses[name]) is not None
                damping = damping_of(self.settings.damping, rows, found, lambda: share, centred=centred)
                look(name, rows, [found.hessian(g, centred=centred) for g in range(len(rows))], damping)
            streams.passed(stage)

    def _stage(self, stage: Stage, streams: Pair, pruned: nn.Module, counts: Mapping[str, int], done: Done) -> None:
        together = self.settings.order == "blocks" or self.settings.targets == "apart"
        groups = [tuple(p for g in stage.groups for p in g)] if together and stage.groups else stage.groups
        for group in groups:
            moments = self._moments(stage, group, streams, both=self.imitates)
            for name, found in moments.items():
                self._operate(name, found, pruned, counts[name], done)
            for name in (name for path in group for name in self._of(path) if name not in moments):
                self._without_data(
                    name, pruned, counts[name], done, starved=True
                )  # an expert that nothing reaches any more

    def _operate(self, name: str, found: Moments, pruned: nn.Module, count: int, done: Done) -> None:
        facts, weight = self.targets[name], pruned.get_parameter(name)
        rows = as_rows(weight.detach(), facts, found.groups)
        bias = bias_of(pruned, self.uses[name])
        s = self.settings
        published = s.solver in CONTROLS or (s.solver == "columns" and not s.refit)  # these leave biases as they are
        centred = bias is not None and not published  # else the bias takes up the mean
        hessians = [found.hessian(g, centred=centred) for g in range(len(rows))]
        quota = Quota(
            name=name, facts=facts, like=weight.detach(), granularity=s.granularity, count=count, groups=len(rows)
        )
        damping = damping_of(
            s.damping, rows, found, lambda: float(quota.choose(rows.square()).double().mean()), centred=centred
        )
        goal = rows
        if found.cross is not None:
            crossed = [found.crossed(g, centred=centred) for g in range(len(rows))]
            goal = torch.stack([imitated(w, c, h, damping) for w, c, h in zip(rows, crossed, hessians, strict=True)])
        generator = torch.Generator().manual_seed(s.seed)
        result = operate(
            goal, hessians, quota, solver=s.solver, refit=s.refit, damping=damping, block=s.block, generator=generator,
            importance=self._weigh(name, len(rows)),
        )  # fmt: skip
        done.rows.append(row_of(name, result, found, rows))  # while ``rows``, a view of the weight, is dense
        with torch.no_grad():
            if bias is not None and centred:
                bias.add_(bias_step(found, rows, result.weights).to(bias.dtype))
            weight.copy_(from_rows(result.weights.to(weight.dtype), facts, weight))
        done.masks[name] = from_rows(result.mask, facts, weight).contiguous()

    def _without_data(self, name: str, pruned: nn.Module, count: int, done: Done, *, starved: bool = False) -> None:
        facts, weight = self.targets[name], pruned.get_parameter(name)
        quota = Quota(name=name, facts=facts, like=weight.detach(), granularity=self.settings.granularity, count=count)
        mask = quota.choose(as_rows(weight.detach(), facts, 1).square())
        done.masks[name] = from_rows(mask, facts, weight).contiguous()
        with torch.no_grad():
            weight.masked_fill_(~done.masks[name], 0)
        done.rows.append({"name": name, "samples": 0} | ({"starved": True} if starved else {}))

    def _moments(self, stage: Stage, paths: Sequence[str], streams: Pair, *, both: bool) -> dict[str, Moments]:
        """What the layers take in on all batches; with ``both`` also in the dense network."""
        if not paths:
            return {}
        generator = torch.Generator().manual_seed(self.settings.seed)
        found: dict[str, Moments] = {}
        names = {name for path in paths for name in self._of(path)}
        uses = [use for name in self.targets if name in names for use in self.uses[name]]
        heard = [path for path in paths_of(uses) if path in self.heard]
        for place in range(len(self.batches)):
            now: dict[str, list[Tensor]] = {}
            before: dict[str, list[Tensor]] = {}
            streams.now.listen(stage, heard, noting(now, self.owner), self.heard, place)
            if both:
                streams.dense.listen(stage, heard, noting(before, self.owner), self.heard, place)
            now = {name: calls for name, calls in now.items() if name in names}
            fresh = {name: calls for name, calls in now.items() if name not in found}
            found |= shared_moments(fresh, split=self.settings.damping == HELD_OUT)
            for name in (name for name in now if both and not alike(now[name], before.get(name, []))):
                found[name].unpair()  # other tokens were routed to it
            one_of = {found[name]: name for name in reversed(now)}  # of those that are multiplied with the same
            for name in (name for name in now if one_of[found[name]] == name):
                for at, x in enumerate(now[name]):
                    found[name].seen += x.shape[2]
                    chosen = chosen_places(x.shape[2], self.settings.samples, generator)
                    dense = before[name][at][:, :, chosen] if both and found[name].paired else None
                    found[name].add(x[:, :, chosen], dense, odd=place % 2 == 1)
            if place == len(self.batches) - 1 and paths[0] == self.first:
                next(iter(found.values())).check_varied()
        return found

    def _pair(self, pruned: nn.Module) -> Pair:
        dense, now = (Stream(model, self.batches, self.task, self.chain) for model in (self.model, pruned))
        apart = self.settings.targets == "apart" or pruned is self.model
        return Pair(dense, dense if apart else now, self.stages, both=bool(self.settings.tuning) or self.imitates)

    def _of(self, path: str) -> list[str]:
        return [name for name, facts in self.targets.items() if facts.module == path]

    def _names(self, stage: Stage) -> list[str]:
        return [name for group in stage.groups for path in group for name in self._of(path)]

    def _weigh(self, name: str, groups: int) -> Tensor | None:
        found = self.importance.get(name)
        return None if found is None else found.view(groups, -1)
