"""Units that sleep: they take no part in the forward pass, go on learning, and can be woken as they would be by then.

    forward:  W (.) m        gradient:  G = dL / d(W (.) m),  all of it        update:  the optimizer steps on W with G

Between steps the parameters hold ``W (.) m``; around ``optimizer.step()`` they hold W. Nothing is hooked into the model, so this works
for any layer, under ``torch.compile``, and with every optimizer, also where the forward runs inside the step (a closure, as Lightning has it).

What sleeps never sees what its own steps did to the loss: all sleepers of a layer step towards the same error, again and again. At the
full step they overshoot together, and a network of which much sleeps is wrecked when they wake (a loss of 8 where it was 1, measured). So
their steps can be shortened: ``pace`` is the part of the optimizer's step that what sleeps takes, or all sleepers of a group share one step.

The mask sits on the weights that *read* a unit. A unit that nothing reads is out of the forward exactly, bias and batch norm included,
while what makes it stays alive: its activation is what G needs, so the weights that read it keep learning, and batch-norm statistics
stay true. Were the unit's own weights masked, its bias, or batch norm, would still speak; were those masked as well, the activation
would be exactly 0, and with it every gradient that could bring the unit back: ReLU'(0) = 0.
"""

import gc
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.coupling import Coupling
from secateur.coupling.channels import Channels
from secateur.errors import BadSchedule, WrongModel
from secateur.gates import Place
from secateur.graphs import copied
from secateur.layers import facts_of
from secateur.narrowing.agreement import difference, outputs_of
from secateur.training.attached import closure_in, with_closure

__all__ = ["Sleep", "reading_places"]

_SERVING: "weakref.WeakSet[Any]" = weakref.WeakSet()  # models whose units may sleep, and their optimizers
Places = dict[str, dict[Place, Tensor]]  # group to where it is masked: indices ``[units, entries]`` by place


def reading_places(model: nn.Module, coupling: Coupling, example_inputs: Any) -> Places:
    """Where every group is read; all of its places where that is not enough to silence it, as the example shows.

    The weights of layers that the table of layers knows are read along their inputs. Half of all units are silenced that way, and the
    model is compared with one that is masked everywhere.
    """
    channels, own = Channels(groups=coupling.groups()), dict(model.named_parameters())
    reads = _reading_dims(model)
    every = {channels.key(g): {p: i for p, i in g.places.items() if p[0] in own} for g in channels.groups}
    found = {
        key: {p: i for p, i in places.items() if p[1] in reads.get(p[0], ())} or places for key, places in every.items()
    }
    if _silent(model, found, every, list(found), example_inputs):
        return found
    return {
        key: places if _silent(model, found, every, [key], example_inputs) else every[key]
        for key, places in found.items()
    }


def _reading_dims(model: nn.Module) -> dict[str, set[int]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, set[int]] = {}
    for module in model.modules():
        for attribute, facts in facts_of(module).items():
            weight = module.get_parameter(attribute)
            if facts.in_dim is not None and facts.kind != "embedding" and id(weight) in names:
                dims = {1, 2} if isinstance(module, nn.Bilinear) else {facts.in_dim}
                found.setdefault(names[id(weight)], set()).update(dims)
    return found


def _silent(model: nn.Module, some: Places, every: Places, keys: list[str], example_inputs: Any) -> bool:
    """Whether masking ``some`` places of every other unit of the groups ``keys`` does what masking all of them does."""
    outputs = []
    for places in (some, every):
        masked = copied(model)
        for key in keys:
            _fill_(dict(masked.named_parameters()), {p: i[::2] for p, i in places[key].items()}, 0)
        outputs.append(outputs_of(masked, example_inputs))
    return all(difference(a, b) < 1e-4 for a, b in zip(*outputs, strict=True))


@torch.no_grad()
def _fill_(tensors: Mapping[str, Tensor], places: Mapping[Place, Tensor], value: float) -> None:
    for (name, dim), index in places.items():
        tensors[name].index_fill_(dim, index.reshape(-1).to(tensors[name].device), value)


class Sleep:
    """Which units sleep now, and the whole weights that read them.

    Args:
        model: the module in training.
        places: where every group is masked; see `reading_places`.
        optimizer: its optimizer; it and the model are in no other run.
        pace: the part of each step that sleeping weights take; 1: all of it, 0: they rest, None: one by the number of units that sleep in
            their group.
    """

    def __init__(self, model: nn.Module, places: Places, optimizer: Any, *, pace: float | None = 1.0) -> None:
        self.places, self.pace = places, pace
        names = dict.fromkeys(name for group in places.values() for name, _ in group)
        self._parameters = {name: model.get_parameter(name) for name in names}
        _refuse_served(model, optimizer)
        self._check(optimizer)
        self._served, self.steps = (model, optimizer), 0
        self.keep = {
            key: torch.ones(len(next(iter(group.values()))), dtype=torch.bool) for key, group in places.items()
        }
        self._whole: dict[str, Tensor] | None = None  # while units sleep
        self._paces: dict[str, Tensor] = {}  # of the weights: 1 where they are awake
        self._asleep: dict[str, Tensor] = {}
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]
        _SERVING.update(self._served)

    def fall_asleep(self, keep: Mapping[str, Tensor]) -> None:
        """Let every unit sleep that ``keep`` (group to ``[units]``) does not name."""
        self.wake()
        self.keep = dict(keep)
        self._whole = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._pace()
        self._put_masked()

    @torch.no_grad()
    def wake(self) -> None:
        """Wake all units, with the weights that they have by now."""
        self._put_whole()
        self._whole = None

    @torch.no_grad()
    def evidence(self) -> dict[str, Tensor]:
        """``sum of G * W`` over the weights that read a unit, ``[units]`` by group: dL/dg of a gate g = 1 on it; {} without gradients."""
        sums: dict[Place, Tensor] = {}
        for group in self.places.values():
            for name, dim in group:
                weight = self._parameters[name]
                if (name, dim) not in sums and weight.grad is not None:
                    whole = weight if self._whole is None else self._whole[name]
                    product = (weight.grad.float() * whole.float()).movedim(dim, 0)
                    sums[name, dim] = product.reshape(product.shape[0], -1).sum(1).cpu()
        if not sums:
            return {}
        return {
            key: sum((sums[p][i].sum(1) for p, i in group.items() if p in sums), torch.zeros(len(self.keep[key])))
            for key, group in self.places.items()
        }

    def release(self) -> None:
        """Let go of the optimizer; weights stay as they are."""
        for hook in self._hooks:
            hook.remove()
        _SERVING.difference_update(self._served)

    def state_dict(self) -> dict[str, Any]:
        """Who sleeps, and the whole weights."""
        whole = None if self._whole is None else {name: w.clone() for name, w in self._whole.items()}
        return {"keep": {key: keep.clone() for key, keep in self.keep.items()}, "whole": whole}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off; the model's weights were loaded before.

        Raises:
            WrongModel: the state belongs to a model with other groups.
        """
        sizes = {key: len(keep) for key, keep in state["keep"].items()}
        if sizes != {key: len(keep) for key, keep in self.keep.items()}:
            raise WrongModel("this state is of a run with other groups of channels: another model, example or ignore=?")
        self.keep = {key: keep.clone() for key, keep in state["keep"].items()}
        whole = state["whole"]
        self._whole = whole and {name: whole[name].clone().to(p.device) for name, p in self._parameters.items()}
        self._pace()

    def _before_step(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = closure_in(args, kwargs)
        self._put_whole()
        return None if closure is None or self._whole is None else with_closure(args, kwargs, self._asleep_in(closure))

    def _asleep_in(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure runs forward and backward inside the step, with the optimizer's weights less those that sleep."""

        def masked() -> Any:
            now = {name: p.detach().clone() for name, p in self._parameters.items()}
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.masked_fill_(self._asleep[name], 0)
            try:
                return closure()
            finally:
                with torch.no_grad():
                    for name, parameter in self._parameters.items():
                        parameter.copy_(now[name])

        return masked

    def _after_step(self) -> None:
        self.steps += 1
        self._put_masked()

    @torch.no_grad()
    def _put_whole(self) -> None:
        for name, whole in (self._whole or {}).items():
            self._parameters[name].copy_(whole)

    @torch.no_grad()
    def _put_masked(self) -> None:
        if self._whole is None:
            return
        for name, whole in self._whole.items():
            parameter = self._parameters[name]
            whole.copy_(torch.lerp(whole, parameter, self._paces[name]))
            parameter.masked_fill_(self._asleep[name], 0)

    @torch.no_grad()
    def _pace(self) -> None:
        self._paces = {name: torch.ones_like(parameter) for name, parameter in self._parameters.items()}
        self._asleep = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in self._parameters.items()}
        for key, group in self.places.items():
            out = ~self.keep[key]
            pace = 1 / max(1, int(out.sum())) if self.pace is None else self.pace
            sleeping = {place: index[out] for place, index in group.items()}
            _fill_(self._paces, sleeping, pace)
            _fill_(self._asleep, sleeping, True)

    def _check(self, optimizer: Any) -> None:
        trained = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        for key, group in self.places.items():
            if not any(id(self._parameters[name]) in trained for name, _ in group):
                raise WrongModel(
                    f"nothing that reads the channels of {key!r} is trained by this optimizer ({', '.join(n for n, _ in group)}), so they "
                    f"cannot be judged: leave them out with ignore=[{key.partition('#')[0]!r}], or train those weights"
                )


def _refuse_served(model: nn.Module, optimizer: Any) -> None:
    """Two runs would put each other's weights back. One that nobody holds any more has let go."""
    if model in _SERVING or optimizer in _SERVING:
        gc.collect()
    if model in _SERVING or optimizer in _SERVING:
        raise BadSchedule(
            "this model, or its optimizer, is in a run that is not finished: call finish() or release() of that run first (some units sleep "
            "then, and their weights are zero: load the weights of before), or start with copies of both"
        )
