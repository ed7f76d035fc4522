"""A census of a network's channels for people: which layers make, read and carry each group, and what is held and why.

Plain values come out, so that a receipt can keep them; `Coupling.explain` gives the details of one layer.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from secateur.coupling.channels import Channels
from secateur.coupling.groups import Coupling, Group
from secateur.layers import facts_of
from secateur.report import ChannelGroup, HeldChannels
from secateur.structure import Structure

__all__ = ["groups_of", "held_of", "weights_on"]


def weights_on(group: Group, shapes: Mapping[str, Sequence[int]]) -> int:
    """How many weights would leave with all units of ``group``; one that two dimensions claim counts once."""
    stays: dict[str, float] = {}
    for (name, dim), index in group.places.items():
        if name in shapes:
            stays[name] = stays.get(name, 1.0) * (1 - index.numel() / shapes[name][dim])
    return sum(round(prod(shapes[name]) * (1 - left)) for name, left in stays.items())


def groups_of(coupling: Coupling, model: nn.Module, structure: Structure | None = None) -> tuple[ChannelGroup, ...]:
    """Every group of ``coupling`` in plain values.

    Args:
        coupling: what `couple` found.
        model: the network it was found on, before it is narrowed.
        structure: how it is narrowed; without it nothing has left yet.
    """
    whole, made = Channels(groups=coupling.groups()), _made(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = []
    for group in coupling.groups():
        parts: dict[str, list[str]] = {"makers": [], "readers": [], "others": []}
        for name, dim in group.places:
            role = "others" if name not in made else "makers" if made[name] == dim else "readers"
            parts[role].append(_layer(name, made))
        parts["others"] = [name for name in parts["others"] if name not in parts["makers"] + parts["readers"]]
        found.append(
            ChannelGroup(
                name=whole.key(group),
                kind=group.kind,
                units=group.units,
                kept=group.units if structure is None else _kept(group, structure),
                span=min(index.shape[1] for index in group.places.values()),
                params=weights_on(group, shapes),
                **{role: tuple(dict.fromkeys(names)) for role, names in parts.items()},
            )
        )
    return tuple(found)


def held_of(coupling: Coupling, model: nn.Module) -> tuple[HeldChannels, ...]:
    """The channels that layers make and that may not leave, by reason; the commonest reason first."""
    reason_of, reasons = coupling.dye.palette.causes(coupling.classes)
    found: dict[str, dict[str, int]] = {}
    made = _made(model)
    for name, dim in made.items():
        colours = coupling.dye.owners.get(name, {}).get(dim, torch.zeros(0, dtype=torch.long))
        held = colours[coupling.classes[colours] == 0]
        for place, count in _counted(reason_of[held]):
            layers = found.setdefault(reasons[place].said if place >= 0 else _JOINED, {})
            layers[_layer(name, made)] = layers.get(_layer(name, made), 0) + count
    rows = sorted(found.items(), key=lambda row: -sum(row[1].values()))
    return tuple(HeldChannels(reason=why, layers=tuple(at), channels=tuple(at.values())) for why, at in rows)


def _made(model: nn.Module) -> dict[str, int]:
    """Weight name to the dimension that holds the channels it makes."""
    made = {}
    for path, module in model.named_modules():
        for attribute, facts in facts_of(module).items():
            made[f"{path}.{attribute}".lstrip(".")] = 1 if facts.kind == "embedding" else facts.out_dim
    return made


def _kept(group: Group, structure: Structure) -> int:
    (name, dim), index = next(iter(group.places.items()))
    stays = structure.kept.get(name, {}).get(dim)
    return group.units if stays is None else int(torch.isin(index[:, 0], torch.tensor(stays)).sum())


def _counted(values: Tensor) -> list[tuple[int, int]]:
    found, counts = torch.unique(values, return_counts=True)
    return list(zip(found.tolist(), counts.tolist(), strict=True))


def _layer(name: str, made: Mapping[str, int]) -> str:
    """A tensor is called by its layer, if the table of layers knows it; one of its own keeps its name."""
    path, _, attribute = name.rpartition(".")
    known = attribute in _PLAIN or any(other.rpartition(".")[0] == path for other in made)
    return path if path and known else name


_PLAIN = ("weight", "bias", "running_mean", "running_var")
_JOINED = "is joined with what no layer makes: padding, a constant or an input"
