"""Which integer attributes of the user's modules are sizes that shrink: found by watching where each one goes.

While the example runs, the integers in a module's ``__dict__`` are replaced by `Traced` ones, which survive arithmetic. When one
arrives in ``view``, ``split``, a slice, ..., we know which attribute gives the size of which axis, and the dye says which channels
that axis holds. After narrowing, the attribute becomes the axis's new size. Nothing is guessed from names or from equal values.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.coupling.dyeing import Dye
from secateur.coupling.layering import axes
from secateur.coupling.measured import Measured
from secateur.coupling.rules.holds import hold
from secateur.coupling.solving import SizeUse
from secateur.coupling.traced import Count, Origin, Traced

__all__ = ["Sizes"]


_CALCULATING = frozenset(
    [
        "mul",
        "rmul",
        "div",
        "true_divide",
        "truediv",
        "rtruediv",
        "rdiv",
        "pow",
        "rpow",
        "tensor",
        "as_tensor",
        "add",
        "sub",
        "rsub",
    ]
)


_SHAPES = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]


def _lines(layer: Tensor, axis: int) -> Tensor:
    """``[size of axis, colours at that index]``: an index is gone when all of its colours are."""
    varying = axes(layer)
    for d in range(layer.dim()):
        if d != axis and d not in varying:
            layer = layer.narrow(d, 0, 1)
    return layer.movedim(axis, 0).reshape(layer.shape[axis], -1)


class Sizes(TorchFunctionMode):
    """Gathers `SizeUse` while a model runs under `Dye`."""

    def __init__(self, dye: Dye) -> None:
        super().__init__()
        self.dye = dye
        self.uses: list[SizeUse] = []
        self.before: dict[Origin, int] = {}
        self.valued: set[Origin] = set()  # attributes that decide numbers, not only sizes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "").partition(".")[0]
        if name.strip("_") in _CALCULATING:
            for number in (a for a in args if isinstance(a, Traced | Measured)):
                number.become_value()
        if name in ("__get__", "size") and func in _SHAPES:
            return self._measured(out, *args, **kwargs)
        watch = getattr(self, f"_watch_{name.strip('_')}", None)
        if watch is not None:
            with suppress(IndexError, TypeError):  # an unusual call of the same name says nothing about sizes
                watch(out, *args, **kwargs)
        return out

    def _measured(self, size: Any, tensor: Tensor, dim: int = 0, *_: Any) -> Any:
        """A shape whose numbers say when they are calculated with."""
        layers = self.dye.of(tensor)
        if not layers or not tensor.numel():  # no elements, no colours
            return size
        found = []
        for axis in range(tensor.dim()):
            size_here, dyed = tensor.shape[axis], [layer for layer in layers if axis in axes(layer)]
            hold_them = tuple(partial(self._hold_count, layer, axis) for layer in dyed)
            found.append(Measured(size_here, Count(_lines(dyed[0], axis)), hold_them) if dyed else size_here)
        return torch.Size(found) if isinstance(size, torch.Size) else found[dim]

    def _hold_count(self, layer: Tensor, axis: int) -> None:
        self.dye.operation = "shape"
        hold(self.dye, layer, {axis}, "is counted, and the number is calculated with")

    def _note(self, size: Any, tensor: Tensor, axis: int) -> None:
        if isinstance(size, Traced) and isinstance(tensor, Tensor):
            axis %= tensor.dim()
            if tensor.shape[axis] != size or not tensor.numel():
                return
            for layer in self.dye.of(tensor):
                if axis in axes(layer):
                    self.uses.append(SizeUse(size.expression, _lines(layer, axis)))

    def _watch_view(self, out: Tensor, _x: Tensor, *shape: Any, **_: Any) -> None:
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list | torch.Size) else shape
        for axis, size in enumerate(sizes):
            self._note(size, out, axis)

    _watch_reshape = _watch_unsafe_view = _watch_expand = _watch_new_zeros = _watch_new_ones = _watch_new_empty = (
        _watch_view
    )

    def _watch_zeros(self, out: Tensor, *shape: Any, size: Any = (), **_: Any) -> None:
        self._watch_view(out, out, *(shape or (size,)))

    _watch_ones = _watch_empty = _watch_randn = _watch_rand = _watch_zeros

    def _watch_full(self, out: Tensor, size: Any, *_: Any, **__: Any) -> None:
        self._watch_view(out, out, size)

    def _watch_new_full(self, out: Tensor, _x: Tensor, size: Any, *_: Any, **__: Any) -> None:
        self._watch_view(out, out, size)

    def _watch_group_norm(self, _out: Tensor, x: Tensor, groups: Any, *_: Any, **__: Any) -> None:
        self._note_groups(groups, x)

    def _watch_layer_norm(self, _out: Tensor, x: Tensor, shape: Any, *_: Any, **__: Any) -> None:
        for k, size in enumerate(shape):
            self._note(size, x, k - len(shape))

    _watch_rms_norm = _watch_layer_norm

    def _note_groups(self, groups: Any, x: Tensor) -> None:
        if isinstance(groups, Traced):
            for layer in self.dye.on(x, 1):
                self.uses.append(SizeUse(groups.expression, _lines(layer, 1).view(int(groups), -1)))

    def _watch_unflatten(self, out: Tensor, x: Tensor, dim: int, sizes: Any) -> None:
        for k, size in enumerate(sizes):
            self._note(size, out, dim % x.dim() + k)

    def _watch_split(self, out: Any, _x: Tensor, sizes: Any, dim: int = 0) -> None:
        given = sizes if isinstance(sizes, tuple | list) else [sizes] * len(out)
        for piece, size in zip(out, given, strict=False):
            self._note(size, piece, dim)

    _watch_split_with_sizes = _watch_split

    def _watch_slice(self, _out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, *_: Any) -> None:
        self._note_slice(slice(start, end), x, dim % x.dim())

    def _watch_narrow(self, out: Tensor, _x: Tensor, dim: int, _start: Any, length: Any) -> None:
        self._note(length, out, dim)

    def _watch_getitem(self, _out: Tensor, x: Tensor, index: Any) -> None:
        entries = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(e, slice) for e in entries) or any(isinstance(e, Tensor | list) for e in entries):
            return
        axis = 0
        for k, entry in enumerate(entries):
            if entry is Ellipsis:
                axis = x.dim() - sum(e is not None for e in entries[k + 1 :])
                continue
            if entry is None:
                continue
            if isinstance(entry, slice):
                self._note_slice(entry, x, axis)
            axis += 1

    def _note_slice(self, entry: slice, x: Tensor, axis: int) -> None:
        for bound in (entry.start, entry.stop):
            if isinstance(bound, Traced):
                for layer in self.dye.on(x, axis):
                    flat = _lines(layer, axis)
                    part = flat[: int(bound)] if bound >= 0 else flat[int(bound) :]
                    expression = bound.expression if bound >= 0 else ("rsub", bound.expression, 0)
                    self.uses.append(SizeUse(expression, part))

    def _watch_conv2d(self, _out: Tensor, x: Tensor, *rest: Any, **named: Any) -> None:
        self._note_groups(named.get("groups", rest[5] if len(rest) > 5 else 1), x)

    _watch_conv1d = _watch_conv3d = _watch_conv2d
    _watch_conv_transpose1d = _watch_conv_transpose2d = _watch_conv_transpose3d = _watch_conv2d

    @contextmanager
    def tracing(self, model: nn.Module) -> Iterator[None]:
        """Replace integer attributes of the user's modules, also inside lists and tuples, by traced ones for a while."""
        kept: list[tuple[nn.Module, str, Any]] = []
        for path, module in model.named_modules():
            for attribute, value in list(vars(module).items()):
                traced = None if attribute.startswith("_") else self._traced(value, path, attribute)
                if traced is not None:
                    kept.append((module, attribute, value))
                    module.__dict__[attribute] = traced
        width = nn.modules.module.register_module_forward_pre_hook(self._watch_width)
        try:
            yield
        finally:
            width.remove()
            for module, attribute, value in kept:
                module.__dict__[attribute] = value

    def _watch_width(self, module: nn.Module, args: Any) -> None:
        """Norms without tensors of their own say their width in an attribute alone."""
        norms = nn.modules.batchnorm._NormBase, nn.GroupNorm
        if isinstance(module, norms) and args and isinstance(args[0], Tensor) and args[0].dim() > 1:
            for attribute in ("num_features", "num_channels"):
                self._note(vars(module).get(attribute), args[0], 1)

    def _traced(self, value: Any, path: str, attribute: str) -> Any:
        if type(value) is int and value > 1:
            self.before[path, attribute] = value
            return Traced(value, (path, attribute), self.valued)
        if type(value) in (list, tuple) and value and all(type(entry) is int for entry in value):
            return type(value)(
                entry if traced is None else traced
                for k, entry in enumerate(value)
                for traced in [self._traced(entry, path, f"{attribute}.{k}")]
            )
        return None
