"""Wires: from the one layer that makes a group of channels to the layers that read them, with nothing in between that knows them.

Merging units needs both ends: what each unit does to its input (its filter, with the batch norm behind it folded in), and the weights
that read it. A group that sits anywhere else as well, such as a residual stream or a depthwise convolution, is no wire.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.coupling.groups import Group
from secateur.facts import LayerFacts
from secateur.gates import Place, read_by
from secateur.layers import facts_of
from secateur.solvers.likeness import RELU, Kernel

__all__ = [
    "Filters",
    "Wire",
    "copy_units_",
    "filters_of",
    "may_scale",
    "outgoing_of",
    "set_outgoing_",
    "silence_units_",
    "wire_of",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Wire:
    """One maker, perhaps a batch norm, and readers.

    Args:
        group: the channels, and where they sit.
        maker: the weight that makes them, and its dimension.
        norm: path of the batch norm behind it; None for none.
        readers: the weights that read them, and their dimensions.
        homogeneous: whether F(c z) = c F(z) for c > 0, with F what a reader takes in of a channel z; see `secateur.merging.passage`.
        slope: -F(-1) / F(1) where it is: 0 for ReLU, 1 where nothing or a pooling is in between.
        kernel: where it is, what is expected of F of two channels; that of the slope, but for poolings by maxima, which add a mean.
    """

    group: Group
    maker: Place
    norm: str | None
    readers: tuple[Place, ...]
    homogeneous: bool = False
    slope: float = 0.0
    kernel: Kernel = RELU

    @property
    def layer(self) -> str:
        """Path of the layer that makes the channels."""
        return self.maker[0].rpartition(".")[0]

    @property
    def refits(self) -> bool:
        """Whether what is expected of units (`secateur.solvers.likeness`) says how others can make up for one."""
        return self.homogeneous and self.group.places[self.maker].shape[1] == 1

    @property
    def last(self) -> str:
        """Path of what the channels come out of, linear in what goes in: the batch norm, or the layer."""
        return self.layer if self.norm is None else self.norm


class Filters(NamedTuple):
    """What units do to their input: ``weights`` ``[units, entries, ...]`` and ``biases`` ``[units, entries]``."""

    weights: Tensor
    biases: Tensor


def wire_of(model: nn.Module, group: Group) -> Wire | str:
    """The wire of ``group``, or in a few words why it is none."""
    roles = _roles(model, group)
    why = _why_not(model, group, roles)
    if why:
        return why
    return Wire(
        group=group,
        maker=roles.makers[0],
        norm=roles.norms[0] if roles.norms else None,
        readers=tuple(roles.readers),
    )


@dataclass
class _Roles:
    makers: list[Place] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    readers: list[Place] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def _roles(model: nn.Module, group: Group) -> _Roles:
    modules = dict(model.named_modules())
    reading = set(read_by(model, {name: LayerFacts() for name, _ in group.places}).values())
    roles = _Roles()
    for place in group.places:
        path, _, attribute = place[0].rpartition(".")
        module = modules[path]
        if isinstance(module, _BatchNorm):
            roles.norms += [] if path in roles.norms else [path]
        elif _makes(module, attribute, place[1]):
            roles.makers.append(place)
        elif place in reading:
            roles.readers.append(place)
        elif attribute == "bias":
            roles.biases.append(path)
        else:
            roles.others.append(path or place[0])
    made = [name.rpartition(".")[0] for name, _ in roles.makers]
    roles.others += [path for path in roles.biases if path not in made + roles.others]
    return roles


def _makes(module: nn.Module, attribute: str, dim: int) -> bool:
    facts = facts_of(module).get(attribute)
    if facts is None or isinstance(module, nn.Bilinear):
        return False
    return facts.kind in ("linear", "conv") and facts.groups == 1 and facts.out_dim == dim


def _why_not(model: nn.Module, group: Group, roles: _Roles) -> str:
    """The first thing that forbids it, in a few words; "" if nothing does."""
    makers, readers = [name for name, _ in roles.makers], [name for name, _ in roles.readers]
    shared = _shared(model, [*makers, *readers])
    silent = [path for path in roles.norms if _norm(model, path).running_var is None]
    checks = {
        f"a unit is a {group.kind}": group.kind not in ("channel", "hidden"),
        "all of them are one unit": group.units < 2,
        f"{len(makers)} layers make them ({', '.join(makers)})": len(makers) > 1,
        f"they also sit in {', '.join(map(repr, roles.others[:1]))}": roles.others,
        "no linear layer or convolution makes them": not makers,
        "no linear layer or convolution reads them": not readers,
        f"{', '.join(makers)} reads what it makes": set(makers) & set(readers),
        f"{len(roles.norms)} batch norms work on them ({', '.join(roles.norms)})": len(roles.norms) > 1,
        f"{', '.join(map(repr, silent))} has no running statistics": silent,
        f"{shared} belongs to several layers": shared,
    }
    return next((why for why, forbidden in checks.items() if forbidden), "")


def _norm(model: nn.Module, path: str) -> _BatchNorm:
    norm = model.get_submodule(path)
    assert isinstance(norm, _BatchNorm)
    return norm


def _shared(model: nn.Module, names: list[str]) -> str | None:
    """The first of ``names`` that is one parameter with another."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return next((name for name in names if owners[id(model.get_parameter(name))] > 1), None)


@torch.no_grad()
def filters_of(model: nn.Module, wire: Wire) -> Filters:
    """The filters of all units in float64, those of the layer and its batch norm in one: ``g (w x + b - mean) + shift``."""
    name, dim = wire.maker
    index = wire.group.places[wire.maker]
    weights = model.get_parameter(name).double().movedim(dim, 0)[index]
    bias = model.get_submodule(wire.layer)._parameters.get("bias")
    biases = weights.new_zeros(index.shape) if bias is None else bias.double()[index]
    if wire.norm is None:
        return Filters(weights, biases)
    scale, mean, shift = _affine(_norm(model, wire.norm), wire.group.places[f"{wire.norm}.running_var", 0])
    wide = scale.reshape(*scale.shape, *[1] * (weights.dim() - 2))
    return Filters(weights * wide, (biases - mean) * scale + shift)


def _affine(norm: _BatchNorm, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a batch norm in eval mode multiplies with, takes away before and adds behind, by unit."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = (norm.running_var.double()[index] + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()[index]
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias.double()[index]
    return scale, norm.running_mean.double()[index], shift


@torch.no_grad()
def outgoing_of(model: nn.Module, wire: Wire) -> Tensor:
    """All weights that read each unit, ``[units, weights]``, in float64."""
    read = [(model.get_parameter(name).movedim(dim, 0), wire.group.places[name, dim]) for name, dim in wire.readers]
    return torch.cat([weight[index].double().flatten(1) for weight, index in read], 1)


@torch.no_grad()
def set_outgoing_(model: nn.Module, wire: Wire, outgoing: Tensor) -> None:
    """Write what `outgoing_of` read, changed, in place."""
    start = 0
    for name, dim in wire.readers:
        weight, index = model.get_parameter(name).movedim(dim, 0), wire.group.places[name, dim]
        here = weight[index]
        size = here.numel() // len(index)
        weight[index] = outgoing[:, start : start + size].reshape(here.shape).to(weight)
        start += size


@torch.no_grad()
def copy_units_(model: nn.Module, wire: Wire, source: Tensor, target: Tensor, factor: float) -> None:
    """Make the units ``target`` do ``factor`` times what the units ``source`` do, in place; their readers stay as they are."""
    for place, index in wire.group.places.items():
        if place not in wire.readers:
            path, _, attribute = place[0].rpartition(".")
            tensor = getattr(model.get_submodule(path), attribute).movedim(place[1], 0)
            scaled = path == wire.last and attribute in ("weight", "bias")
            tensor[index[target]] = tensor[index[source]] * (factor if scaled else 1)


@torch.no_grad()
def silence_units_(model: nn.Module, wire: Wire, units: Tensor) -> None:
    """Make units give nothing, in place."""
    for (name, dim), index in wire.group.places.items():
        path, _, attribute = name.rpartition(".")
        if (name, dim) not in wire.readers and attribute != "running_var":
            getattr(model.get_submodule(path), attribute).movedim(dim, 0)[index[units]] = 0


def may_scale(model: nn.Module, wire: Wire) -> bool:
    """Whether `copy_units_` can make a unit do a multiple of what another does."""
    return wire.norm is None or _norm(model, wire.norm).affine
