"""What a sensitivity analysis prunes alone: one parameter at a time, or one group of coupled channels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.allocations.uniform import Uniform
from secateur.coupling import Group, couple
from secateur.coupling.census import weights_on
from secateur.coupling.channels import Channels
from secateur.errors import NeedsTask, NothingToPrune
from secateur.facts import LayerFacts
from secateur.masks import Masks
from secateur.names import granularity_of
from secateur.planning import plan
from secateur.protocols import Granularity
from secateur.scores import Scores
from secateur.targets import Ignore, find_targets

__all__ = ["Probe", "probes_of"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One thing that is pruned alone.

    Args:
        name: of the parameter, or of the group as `Channels.key` says it.
        granularity: what leaves together.
        parameters: what is masked.
        weights: how many weights that touches at most.
    """

    name: str
    granularity: Granularity
    parameters: tuple[str, ...]
    weights: int

    @property
    def fixed(self) -> bool:
        """Whether the granularity says by itself how much leaves."""
        return self.granularity.quota is not None

    def plan(self, scores: Scores, sparsity: float) -> tuple[Masks, float]:
        """The masks at ``sparsity``, and the sparsity that they really reach: of units where those are channels."""
        alone = replace(scores, values={name: scores.values[name] for name in self.parameters})
        if not isinstance(self.granularity, Channels):
            masks = plan(alone, self.granularity, None if self.fixed else Uniform(sparsity=sparsity))
            return masks, masks.sparsity
        counts = Uniform(sparsity=sparsity, min_kept=1)(self.granularity.pool(alone))
        (kept,) = counts.values()
        return plan(alone, self.granularity, lambda _: counts), 1 - kept / self.granularity.groups[0].units


def probes_of(
    model: nn.Module,
    granularity: str | Granularity,
    *,
    ignore: Ignore | Iterable[Ignore] = (),
    example_inputs: Any = None,
    heads: str = "whole",
) -> tuple[Mapping[str, LayerFacts], list[Probe]]:
    """What the criterion is asked about, and what is then pruned alone.

    Raises:
        NeedsTask: channels without ``example_inputs``.
        NothingToPrune, UnknownName, UnknownOperation: as for pruning.
    """
    targets = find_targets(model, ignore=ignore)
    if granularity != "channel":
        pattern = granularity_of(granularity)
        return targets, [_of_parameter(model, name, pattern) for name in targets]
    if example_inputs is None:
        raise NeedsTask(
            "granularity='channel' runs the model once to see what is coupled: pass example_inputs=, e.g. torch.randn(1, 3, 224, 224)"
        )
    whole = Channels(groups=couple(model, example_inputs, ignore=ignore, heads=heads).groups())
    if not whole.groups:
        raise NothingToPrune(
            f"no channel of {type(model).__name__} may leave; couple(...).explain('layer') says why, layer by layer"
        )
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    probes = [_of_group(whole, group, shapes) for group in whole.groups]
    return {name: LayerFacts() for probe in probes for name in probe.parameters}, probes


def _of_parameter(model: nn.Module, name: str, pattern: Granularity) -> Probe:
    return Probe(name=name, granularity=pattern, parameters=(name,), weights=model.get_parameter(name).numel())


def _of_group(whole: Channels, group: Group, shapes: Mapping[str, Sequence[int]]) -> Probe:
    names = tuple(dict.fromkeys(name for name, _ in group.places if name in shapes))
    alone = Channels(groups=(group,))
    return Probe(name=whole.key(group), granularity=alone, parameters=names, weights=weights_on(group, shapes))
