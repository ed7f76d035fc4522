"""What happens to a channel between the layer that makes it and those that read it, found out by feeding numbers in.

With F what a reader takes in of one channel z, as a function of its whole map, units may be merged where

    F is the same for all channels and looks at no other,   and may differ by a factor where   F(c z) = c F(z)  for c > 0.

No list of activations is needed: what the layer gives is replaced by noise of many sizes while the model runs on the example, and what
arrives at the readers is compared: channels permuted, some of them changed, all of them scaled. In the end like units are made and
merged, and the outputs must stay: that also finds what looks at the channels without any weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.coupling.groups import Group
from secateur.coupling.running import run
from secateur.examples import leaving_no_trace
from secateur.gates import Place, reader_inputs
from secateur.graphs import copied
from secateur.merging.noise import Change, fields_like, noise_from, noise_like, units_of
from secateur.merging.wiring import Wire, copy_units_, may_scale, outgoing_of, set_outgoing_, silence_units_, wire_of
from secateur.narrowing.agreement import difference, outputs_of
from secateur.solvers.likeness import Kernel

__all__ = ["wires_of"]

_FACTORS = (8.0, 0.125)
_MAPS = 500  # drawn to see what is expected of a function that mixes places


def wires_of(
    model: nn.Module, groups: Sequence[Group], example_inputs: Any, *, refitted: bool = True
) -> tuple[list[Wire], dict[str, list[str]]]:
    """The groups whose units may be merged; and for the others why not, reason to group names.

    The model is run a few times for each group, in eval mode, and left as it was. Without ``refitted`` nobody will ask for the kernels
    of poolings by maxima, which take the most runs.
    """
    trial = _Trial.of(model, example_inputs, sampled=refitted)
    sound: list[Wire] = []
    why: dict[str, list[str]] = {}
    for group in groups:
        wire = wire_of(model, group)
        found = trial.passes(wire) if isinstance(wire, Wire) else wire
        if isinstance(found, Wire):
            sound.append(found)
        else:
            why.setdefault(found, []).append(group.name)
    if not trial.merges_exactly(sound):
        for wire in [wire for wire in sound if not trial.merges_exactly([wire])]:
            sound.remove(wire)
            why.setdefault("something besides its readers looks at them", []).append(wire.group.name)
    return sound, why


@dataclass(frozen=True, eq=False, kw_only=True)
class _Trial:
    """A copy of the model, and what it is run on: the example, and noise in place of its numbers if that runs."""

    model: nn.Module
    example: Any
    noise: Any
    tolerance: float
    sampled: bool

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any, *, sampled: bool) -> "_Trial":
        """In float64 where the model runs in it."""
        generator = torch.Generator().manual_seed(3)
        inputs = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, example_inputs)
        noise = tree_map_only(Tensor, lambda t: noise_like(t, generator) if t.is_floating_point() else t, inputs)
        wide = copied(model).double()
        if not _runs(wide, inputs):  # code with a type of numbers written into it
            return cls(model=copied(model), example=example_inputs, noise=None, tolerance=1e-4, sampled=sampled)
        noise = noise if _runs(wide, noise) else None
        return cls(model=wide, example=inputs, noise=noise, tolerance=1e-8, sampled=sampled)

    def passes(self, wire: Wire) -> Wire | str:
        """The wire with what was found out about it, or why its units cannot be merged."""
        try:
            return self._why_not(wire) or self._judged(wire)
        except Exception as error:  # noqa: BLE001 - whatever the user's forward raises on noise
            return f"the model does not run when they are noise ({type(error).__name__})"

    def _why_not(self, wire: Wire) -> str:
        if wire.norm is not None and not self._norm_follows(wire):
            return f"{wire.norm!r} does not follow {wire.layer!r} directly"
        plain = self._arrivals(wire)
        if not plain.numel():
            return "its layers are not called as modules"
        order = torch.randperm(wire.group.units, generator=torch.Generator().manual_seed(1))
        changed, stays = order[::2], order[1::2]
        alike = self._alike(self._arrivals(wire, _some(wire, changed, lambda z: -30 * z)), plain)
        if not alike[stays].all():
            return "what is read of one depends on the others"
        if alike[changed].all():
            return "what they are does not arrive at the readers"
        if not self._alike(self._arrivals(wire, _permuted(wire, order)), plain[order]).all():
            return "not all of them are read alike"
        return ""

    def _judged(self, wire: Wire) -> Wire:
        """What F is like, as far as it matters."""

        def read(change: Change) -> Tensor:
            return self._arrivals(wire, _some(wire, None, change))

        plain = read(Tensor.clone)
        scaled = [(c, read(lambda z, c=c: c * z)) for c in _FACTORS]  # type: ignore[misc]
        if not all(self._alike(there, c * plain).all() for c, there in scaled):
            return wire
        ones = read(torch.ones_like)
        size = float(ones.square().sum())
        slope = 0.0 - float((read(lambda z: -torch.ones_like(z)) * ones).sum()) / size if size else 0.0
        above, below = read(lambda z: z.clamp(min=0)), read(lambda z: (-z).clamp(min=0))
        sums = self._alike(above + below, read(Tensor.abs)) & self._alike(above - slope * below, plain)
        kernel = self._kernel(wire) if self.sampled and not sums.all() else Kernel.bent(slope)
        return replace(wire, homogeneous=True, slope=slope, kernel=kernel)

    def _kernel(self, wire: Wire) -> Kernel:
        """What is expected of F where it is not a function of every element: how it treats maps as smooth as those of images."""
        sums, generator, drawn = torch.zeros(3, dtype=torch.float64), torch.Generator().manual_seed(4), 0

        def drawing(maps: Tensor) -> Tensor:
            nonlocal drawn
            drawn += maps.shape[:2].numel()
            return fields_like(maps, generator)

        while drawn < _MAPS:
            state = generator.get_state()
            above = self._arrivals(wire, _some(wire, None, drawing)).double()
            generator.set_state(state)
            below = self._arrivals(wire, _some(wire, None, lambda maps: -fields_like(maps, generator))).double()
            others = above.roll(1, 0)
            sums += torch.stack([(above * there).mean() for there in (above, others, below)])
        return Kernel.through(*sums.tolist())

    def _norm_follows(self, wire: Wire) -> bool:
        assert wire.norm is not None
        layer, norm = self.model.get_submodule(wire.layer), self.model.get_submodule(wire.norm)
        place = f"{wire.norm}.running_var", 0
        with (
            leaving_no_trace(self.model),
            noise_from(layer, Tensor.clone) as made,
            reader_inputs({norm: place}) as seen,
        ):
            run(self.model, self.example)
        here = units_of(made, wire.group.places[wire.maker])
        there = units_of(seen, wire.group.places[place])
        return here.shape == there.shape and torch.equal(here, there)

    def _arrivals(self, wire: Wire, change: Change = Tensor.clone) -> Tensor:
        """What the readers take in of each unit, ``[units, elements]``, when the layer gives changed noise."""
        readers = {self.model.get_submodule(name.rpartition(".")[0]): (name, dim) for name, dim in wire.readers}
        with (
            leaving_no_trace(self.model),
            noise_from(self.model.get_submodule(wire.last), change),
            reader_inputs(readers) as seen,
        ):
            torch.manual_seed(0)
            run(self.model, self.example)
        if {module for module, _ in seen} != set(readers):
            return torch.zeros(wire.group.units, 0)
        return torch.cat([units_of([(m, x)], wire.group.places[readers[m]]) for m, x in seen], 1)

    def _alike(self, a: Tensor, b: Tensor) -> Tensor:
        """Which units are the same but for rounding."""
        size = torch.maximum(a.abs(), b.abs()).amax(1)
        return (a - b).abs().amax(1) <= self.tolerance * size

    def merges_exactly(self, wires: Sequence[Wire]) -> bool:
        """Whether the outputs stay when every other unit is made like the one before it, and merged into it."""
        model = copied(self.model)
        merged = []
        for wire in wires:
            order = torch.randperm(wire.group.units, generator=torch.Generator().manual_seed(2))
            source, target = order[0:-1:2], order[1::2]
            factor = 2.0 if wire.homogeneous and may_scale(model, wire) else 1.0
            copy_units_(model, wire, source, target, factor)
            outgoing = outgoing_of(model, wire)
            outgoing[source] += factor * outgoing[target]
            outgoing[target] = 0
            merged.append((outgoing, target))
        before = self._outputs(model)
        for wire, (outgoing, target) in zip(wires, merged, strict=True):
            set_outgoing_(model, wire, outgoing)
            silence_units_(model, wire, target)
        after = self._outputs(model)
        return all(difference(a, b) <= 100 * self.tolerance for a, b in zip(before, after, strict=True))

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        return [t for x in (self.example, self.noise) if x is not None for t in outputs_of(model, x)]


def _runs(model: nn.Module, example: Any) -> bool:
    try:
        outputs_of(model, example)
    except Exception:  # noqa: BLE001 - whatever it raises
        return False
    return True


def _some(wire: Wire, units: Tensor | None, change: Change) -> Change:
    """``change`` for some units of a group; None for all."""
    index = _last_index(wire)
    chosen = index.flatten() if units is None else index[units].flatten()

    def changed(maps: Tensor) -> Tensor:
        maps = maps.clone()
        maps[chosen] = change(maps[chosen])
        return maps

    return changed


def _permuted(wire: Wire, order: Tensor) -> Change:
    index = _last_index(wire)

    def changed(maps: Tensor) -> Tensor:
        maps = maps.clone()
        maps[index.flatten()] = maps[index[order].flatten()]
        return maps

    return changed


def _last_index(wire: Wire) -> Tensor:
    place: Place = wire.maker if wire.norm is None else (f"{wire.norm}.running_var", 0)
    return wire.group.places[place]
