"""The layout of ``torch.nn.utils.prune``: a parameter ``weight`` as ``weight_orig`` times ``weight_mask``, redone before each forward.

`read` it, `absorb_` it into plain parameters (what everything else in Secateur expects), `write_` it for tools that expect it.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as theirs

from secateur.errors import UnknownName, WrongModel
from secateur.masks import Masks

__all__ = [
    "absorb_",
    "absorb_state_dict",
    "custom_from_mask",
    "held_by",
    "identity",
    "kept_of",
    "read",
    "remove",
    "tensor_of",
    "write_",
]


def read(model: nn.Module) -> Masks:
    """The masks that a model holds in torch's layout, under the names its parameters had before; the model is not touched.

    >>> layer = theirs.l1_unstructured(nn.Linear(4, 1), "weight", amount=3)
    >>> read(layer)
    Masks(1 tensors, 1 of 4 weights kept, sparsity 0.7500)
    """
    return Masks({name: module.get_buffer(f"{own}_mask") != 0 for name, module, own in _held(model)})


def absorb_(model: nn.Module) -> Masks:
    """Make the weights plain parameters again, in place, with exact zeros; the masks come back.

    Parameters keep their identity, their values and gradients elsewhere, and get their old names and order in the module, so
    optimizers go on working and ``state_dict`` has the keys it had before.

    >>> layer = theirs.l1_unstructured(nn.Linear(4, 1), "weight", amount=3)
    >>> masks = absorb_(layer)
    >>> list(layer.state_dict()), int(layer.weight.count_nonzero()), masks.kept
    (['bias', 'weight'], 1, 1)
    """
    masks = read(model)
    for _, module, own in list(_held(model)):
        _plain_(module, own)
    return masks


def write_(model: nn.Module, masks: Masks) -> nn.Module:
    """Put ``masks`` on a plain model in torch's layout, in place; tied weights in every module that holds them.

    Afterwards ``torch.nn.utils.prune.is_pruned(model)`` is true and ``torch.nn.utils.prune.remove`` works. Values that the masks
    remove stay in ``weight_orig``, as torch has it.

    Raises:
        WrongModel: the masks belong to another model, or it holds some of them in torch's layout already.
    """
    there = sorted(set(masks) & {name for name, _, _ in _held(model)})
    if there:
        raise WrongModel(f"{', '.join(there[:8])} is in torch's layout already: call absorb_(model) first")
    masks.check(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = {id(parameters[name]): mask for name, mask in masks.items()}
    for name, parameter in parameters.items():
        if id(parameter) in wanted:
            path, _, own = name.rpartition(".")
            if own in model.get_submodule(path)._parameters:  # a module under two names is done once
                custom_from_mask(model.get_submodule(path), own, wanted[id(parameter)])
    return model


def absorb_state_dict(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Masks]:
    """A checkpoint in torch's layout as one of the plain model, and its masks.

    >>> state, masks = absorb_state_dict({"w_orig": torch.tensor([3.0, 4.0]), "w_mask": torch.tensor([0.0, 1.0])})
    >>> state["w"], masks["w"]
    (tensor([0., 4.]), tensor([False,  True]))
    """
    held = [key.removesuffix("_orig") for key in state if key.endswith("_orig") and f"{key[:-5]}_mask" in state]
    masks = {name: state[f"{name}_mask"] != 0 for name in held}
    plain = {name: state[f"{name}_orig"].masked_fill(~mask, 0) for name, mask in masks.items()}
    parts = {f"{name}{suffix}" for name in held for suffix in ("_orig", "_mask")}
    return {key: value for key, value in state.items() if key not in parts} | plain, Masks(masks)


def identity(module: nn.Module, name: str) -> nn.Module:
    """Put ``name`` in torch's layout without removing anything."""
    return custom_from_mask(module, name, kept_of(module, name))


def custom_from_mask(module: nn.Module, name: str, mask: Tensor) -> nn.Module:
    """Remove what ``mask`` removes, on top of what is removed already.

    Raises:
        WrongModel: the mask has another shape.
    """
    tensor = tensor_of(module, name)
    if mask.shape != tensor.shape:
        raise WrongModel(f"{name!r} has shape {list(tensor.shape)} and its mask {list(mask.shape)}")
    order = [f"{name}_orig" if own == name else own for own in module._parameters]
    theirs.custom_from_mask(module, name, mask.to(tensor.device, tensor.dtype))  # type: ignore[no-untyped-call]
    _put_in_order(module, order)
    setattr(module, name, getattr(module, name).detach())  # a leaf until the next forward, so that deepcopy works
    return module


def remove(module: nn.Module, name: str) -> nn.Module:
    """Make one parameter plain again; its zeros stay.

    Raises:
        WrongModel: it is not in torch's layout.
    """
    if name not in held_by(module):
        raise WrongModel(f"{name!r} of {type(module).__name__} is not in the layout of torch.nn.utils.prune")
    _plain_(module, name)
    return module


def held_by(module: nn.Module) -> list[str]:
    """The parameters that ``module`` itself holds in torch's layout, by their plain names."""
    names = [name.removesuffix("_orig") for name in module._parameters if name.endswith("_orig")]
    return [name for name in names if f"{name}_mask" in module._buffers]


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """The weight ``name`` as the next forward will see it, without gradient.

    Raises:
        UnknownName: there is no such parameter.
    """
    if name in held_by(module):
        return module.get_parameter(f"{name}_orig").detach().masked_fill(~kept_of(module, name), 0)
    if name not in module._parameters or module._parameters[name] is None:
        own = ", ".join(plain.removesuffix("_orig") for plain in module._parameters) or "none"
        raise UnknownName(f"{type(module).__name__} has no parameter {name!r}; its own are: {own}")
    return module.get_parameter(name).detach()


def kept_of(module: nn.Module, name: str) -> Tensor:
    """What is kept of ``name``: all of it where it is not in torch's layout."""
    if name in held_by(module):
        return module.get_buffer(f"{name}_mask") != 0
    return torch.ones_like(tensor_of(module, name), dtype=torch.bool)


def _held(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for path, module in model.named_modules():
        for own in held_by(module):
            yield f"{path}.{own}".lstrip("."), module, own


@torch.no_grad()
def _plain_(module: nn.Module, own: str) -> None:
    parameter = module.get_parameter(f"{own}_orig")
    parameter.masked_fill_(~kept_of(module, own), 0)
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, theirs.BasePruningMethod) and hook._tensor_name == own:
            del module._forward_pre_hooks[key]
    module.__dict__.pop(own, None)  # the computed weight
    order = [own if name == f"{own}_orig" else name for name in module._parameters]
    del module._parameters[f"{own}_orig"], module._buffers[f"{own}_mask"]
    setattr(module, own, parameter)  # not register_parameter: recurrent layers keep a list of weights up to date here
    _put_in_order(module, order)


def _put_in_order(module: nn.Module, names: list[str]) -> None:
    for name in names:
        module._parameters[name] = module._parameters.pop(name)
