"""Surgery: cut tensors to what stays and let sizes follow, in place, in the user's own classes.

Works from a `Structure` alone, so that narrowing and loading a narrowed file are one piece of code.
"""

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from secateur.errors import WrongModel
from secateur.narrow_attention import narrow_attention_
from secateur.structure import Structure

__all__ = ["cut_"]

Homes = dict[int, list[tuple[dict[str, Any], str]]]  # where modules hold a tensor, by its identity


def cut_(model: nn.Module, structure: Structure, optimizer: Any = None) -> Callable[[], None]:
    """Cut ``model`` in place. Parameters stay the same objects; the optimizer's state of the same shape is cut alike.

    Returns:
        A function that puts everything back as it was.

    Raises:
        WrongModel: a tensor is missing or has another shape than the structure was made for.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    _check(model, structure, tensors)
    homes = _homes(model)
    undo: list[Callable[[], None]] = []
    for name, dims in structure.kept.items():
        undo += _cut_tensor(homes, tensors[name], dims, optimizer)
    for module in model.modules():
        undo.append(_remember(module))
        follow_(module)
    for (path, attribute), size in structure.sizes.items():
        _set_size(model, path, attribute, size)
    for module in model.modules():
        _refresh(module)

    def restore() -> None:
        for step in reversed(undo):
            step()
        for module in model.modules():
            _refresh(module)

    return restore


def _check(model: nn.Module, structure: Structure, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a structure of another network before anything is cut."""
    for name in structure.kept:
        if name not in tensors or tuple(tensors[name].shape) != structure.shapes[name]:
            found = list(tensors[name].shape) if name in tensors else "missing"
            raise WrongModel(
                f"the structure expects {name!r} with shape {list(structure.shapes[name])}; here it is {found}"
            )
    modules = dict(model.named_modules())
    for (path, attribute), size in structure.sizes.items():
        name, _, place = attribute.partition(".")
        value: Any = vars(modules[path]).get(name) if path in modules else None
        if place and isinstance(value, list | tuple) and place.isdigit() and int(place) < len(value):
            value = value[int(place)]
        if type(value) is not int or size > value:
            raise WrongModel(f"the structure sets {attribute!r} of '{path}' to {size}; here it is {value!r}")


def _cut_tensor(homes: Homes, tensor: Tensor, dims: Any, optimizer: Any) -> list[Callable[[], None]]:
    whole = tensor.shape

    def cut(data: Tensor) -> Tensor:
        if isinstance(data, FakeTensor):  # a trial: only shapes matter
            return data.new_empty([len(dims.get(d, range(size))) for d, size in enumerate(data.shape)])
        for dim, kept in dims.items():
            data = data.index_select(dim, torch.as_tensor(kept, device=data.device))
        return data

    undo = [_swap_data(homes, tensor, cut(tensor.data))]
    state = optimizer.state.get(tensor, {}) if optimizer is not None else {}
    for key, value in list(state.items()):
        if isinstance(value, Tensor) and value.shape == whole:
            state[key] = cut(value)
            undo.append(lambda state=state, key=key, value=value: state.__setitem__(key, value))  # type: ignore[misc]
    return undo


def _swap_data(homes: Homes, tensor: Tensor, data: Tensor) -> Callable[[], None]:
    if not isinstance(tensor, nn.Parameter):
        return _put_everywhere(homes, tensor, data)
    old, gradient = tensor.data, tensor.grad
    tensor.grad = None
    if type(data) is type(old) is Tensor:
        tensor.data = data
    else:  # tensors without storage of their own (fake ones) cannot be resized in place
        _put_everywhere(homes, tensor, nn.Parameter(data, requires_grad=tensor.requires_grad))

    def restore() -> None:
        tensor.data, tensor.grad = old, gradient

    return restore


def _put_everywhere(homes: Homes, old: Tensor, fresh: Tensor) -> Callable[[], None]:
    """Put ``fresh`` wherever modules hold ``old``: several may share it."""
    for home, name in homes[id(old)]:
        home[name] = fresh

    def restore() -> None:
        for home, name in homes[id(old)]:
            home[name] = old

    return restore


def _homes(model: nn.Module) -> Homes:
    homes: Homes = {}
    for module in model.modules():
        for home in (module._parameters, module._buffers):
            for name, tensor in home.items():
                homes.setdefault(id(tensor), []).append((home, name))
    return homes


def _remember(module: nn.Module) -> Callable[[], None]:
    plain = {k: v for k, v in vars(module).items() if isinstance(v, int | tuple | list) and not isinstance(v, bool)}
    kind = type(module)

    def restore() -> None:
        module.__class__ = kind
        module.__dict__.update(plain)

    return restore


def _set_size(model: nn.Module, path: str, attribute: str, size: int) -> None:
    module = model.get_submodule(path)
    name, _, place = attribute.partition(".")
    if not place:
        setattr(module, name, size)
        return
    values = list(getattr(module, name))
    values[int(place)] = size
    setattr(module, name, type(getattr(module, name))(values))


def _refresh(module: nn.Module) -> None:
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


@singledispatch
def follow_(module: nn.Module) -> None:
    """Set the integer attributes of one of PyTorch's own layers to what its tensors now measure."""
    del module


def _shape_of_weight(module: nn.Module) -> torch.Size:
    """The hooks of `torch.nn.utils` compute the weight anew at every call; until then the one of before is there."""
    own = module._parameters
    weight = own.get("weight_v", own.get("weight_orig"))
    return module.weight.shape if weight is None else weight.shape  # type: ignore[return-value]


@follow_.register
def _(module: nn.Linear) -> None:
    module.out_features, module.in_features = _shape_of_weight(module)


@follow_.register
def _(module: nn.Bilinear) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


@follow_.register(nn.modules.conv._ConvNd)
def _(module: nn.modules.conv._ConvNd) -> None:
    inner, outer = module.in_channels // module.groups, module.out_channels
    if module.transposed:  # stored [in, out / groups]
        inner, outer = module.out_channels // module.groups, module.in_channels
    rows, columns = _shape_of_weight(module)[:2]
    if module.groups > 1 and columns == inner:  # whole groups left
        module.groups = rows * module.groups // outer
    module.out_channels, module.in_channels = rows, columns * module.groups
    if module.transposed:
        module.in_channels, module.out_channels = rows, columns * module.groups


@follow_.register(nn.modules.batchnorm._NormBase)
def _(module: nn.modules.batchnorm._NormBase) -> None:
    vector = module.weight if module.weight is not None else module.running_mean
    if vector is not None:
        module.num_features = vector.shape[0]


@follow_.register
def _(module: nn.GroupNorm) -> None:
    if module.weight is not None and module.weight.shape[0] != module.num_channels:
        if module.num_groups > 1:  # whole groups left
            module.num_groups = module.num_groups * module.weight.shape[0] // module.num_channels
        module.num_channels = module.weight.shape[0]


@follow_.register(nn.LayerNorm)
@follow_.register(nn.RMSNorm)
def _(module: Any) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


@follow_.register(nn.Embedding)
@follow_.register(nn.EmbeddingBag)
def _(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


@follow_.register
def _(module: nn.PReLU) -> None:
    module.num_parameters = module.weight.shape[0]


@follow_.register
def _(module: nn.RNNBase) -> None:
    first, own = module.get_parameter("weight_ih_l0"), dict(module.named_parameters(recurse=False))
    module.input_size = first.shape[1]
    module.hidden_size = first.shape[0] // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    if "weight_hr_l0" in own:
        module.proj_size = own["weight_hr_l0"].shape[0]


@follow_.register
def _(module: nn.RNNCellBase) -> None:
    module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]


@follow_.register
def _(module: nn.MultiheadAttention) -> None:
    if module.out_proj.weight.shape[1] != module.num_heads * module.head_dim:
        narrow_attention_(module)
