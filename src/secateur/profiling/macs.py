"""Multiply-accumulates of one forward pass, by watching the operations that really run.

No module is hooked or replaced and nothing is traced, so functional calls, tied weights, control flow and third-party modules
count like any other. Each operation is booked on the module that ran it and, where a factor comes from a weight, scaled by the
share of that weight that is not zero:

    non-zero MACs = MACs * (non-zeros of the weight used) / (its elements)

A factor counts as a weight if it is computed from parameters and buffers alone: a view, a cast, ``weight * mask``.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.examples import plain_attention
from secateur.profiling.operations import Term, has_rule, is_harmless, may_multiply, terms_of

__all__ = ["Macs", "count_macs", "count_nonzeros", "holder_of", "macs_by_weight"]


@dataclass
class Macs:
    """What was counted, by module path ("" for the model itself).

    Args:
        total, nonzero: multiply-accumulates of each module's own operations.
        by_weight: likewise of each parameter, by its first name; what is computed from parameters is not among them.
        uncounted: ``"module: operation"`` for what may multiply but has no rule.
    """

    total: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    nonzero: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by_weight: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    uncounted: dict[str, None] = field(default_factory=dict)


def macs_by_weight(found: Macs, model: nn.Module) -> dict[str, float]:
    """What each weight of two dimensions or more takes; weights share by size where that cannot be told apart (recurrent layers)."""
    shares: dict[str, float] = {}
    for path, total in found.total.items():
        own = dict(model.get_submodule(path).named_parameters(prefix=path, recurse=False)) if path else {}
        own = own or dict(model.named_parameters(recurse=False))
        weights = {name: p.numel() for name, p in own.items() if p.dim() > 1}
        known = {name: float(min(found.by_weight[name], total)) for name in weights if name in found.by_weight}
        left = {name: size for name, size in weights.items() if name not in known} or weights
        rest = max(0.0, total - sum(known.values())) / max(sum(left.values()), 1)
        for name in weights:
            shares[name] = shares.get(name, 0.0) + known.get(name, 0.0) + rest * left.get(name, 0)
    return shares


def count_macs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Macs:
    """Run ``model(*args, **kwargs)`` once without gradients and count; the mode of the model is the caller's business.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (torch.zeros(1, 3, 8, 8),), {}).total  # 8 * 3 * 9 taps at 8 * 8 places
    defaultdict(<class 'int'>, {'': 13824})
    """
    place = _Place(model)
    counter = _Counter(model, place)
    with place.tracked(), plain_attention(), _eager(), torch.no_grad(), counter:
        model(*args, **kwargs)
    return counter.found


class _Place:
    """Where in the model we are: a stack that hooks on *all* modules keep; none is added to the user's modules."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = {module: path for path, module in model.named_modules()}
        self.stack = [""]

    @property
    def path(self) -> str:
        return self.stack[-1]

    @contextmanager
    def tracked(self) -> Iterator[None]:
        def enter(module: nn.Module, _: Any) -> None:
            self.stack.append(self.paths.get(module, self.path))

        def leave(*_: Any) -> None:
            self.stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _eager() -> Iterator[None]:
    """Run what was compiled as it was written, so that its operations can be seen."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled then, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@dataclass(frozen=True)
class _Constant:
    """A storage whose content does not depend on the input; ``weight`` names a parameter behind it, if there is one."""

    alive: Any  # a weak reference: keeps the key from being used again, not the memory
    weight: str | None
    own: bool = False  # it is a parameter or buffer itself


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import the whole compiler (two seconds); `_eager` keeps compiled parts away instead

    def __init__(self, model: nn.Module, place: _Place) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self.place = Macs(), place
        self._holders: dict[str, set[str]] = defaultdict(set)  # first name of a weight: every module that has it
        self._constants: dict[int, _Constant] = {}
        self._densities: dict[Any, tuple[int, int]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            known = self._constants.setdefault(_key(parameter), _Constant(_hold(parameter), name, own=True))
            self._holders[known.weight or name].add(holder_of(name))
        for buffer in model.buffers():
            self._constants.setdefault(_key(buffer), _Constant(_hold(buffer), None, own=True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and not has_rule(func):
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        out = func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._book(func, inputs, terms_of(func, args, kwargs, out))
        self._trace_constants(inputs, out)
        return out

    def _book(self, func: Any, inputs: list[Tensor], terms: list[Term] | None) -> None:
        if terms is None and not is_harmless(func):
            touches = any(t.dim() > 1 and self._weight_behind(t) for t in inputs)
            if touches or may_multiply(func):
                self.found.uncounted[f"{self.place.path or '(top level)'}: {func}"] = None
        for term in terms or ():
            weights = [w for w in term.operands if self._weight_behind(w) or w.is_quantized]
            kept = [term.macs * nonzeros // max(1, size) for nonzeros, size in map(self._density, weights)]
            path = self._path(weights)
            self.found.total[path] += term.macs
            self.found.nonzero[path] += min(kept, default=term.macs)
            own = [name for w in weights if (name := self._parameter_behind(w))]
            if len(own) == 1:
                self.found.by_weight[own[0]] += term.macs

    def _path(self, weights: list[Tensor]) -> str:
        """The module that runs; but in a functional call on another module's weight, that module."""
        known = sorted((self._constants[_key(w)] for w in weights if not w.is_quantized), key=lambda c: not c.own)
        names = [constant.weight for constant in known if constant.weight]
        here = self.place.path
        return holder_of(names[0]) if names and here not in self._holders[names[0]] else here

    def _parameter_behind(self, tensor: Tensor) -> str | None:
        constant = self._constants.get(_key(tensor))
        return constant.weight if constant and constant.own else None

    def _weight_behind(self, tensor: Tensor) -> str | None:
        constant = self._constants.get(_key(tensor))
        return constant.weight if constant else None

    def _density(self, tensor: Tensor) -> tuple[int, int]:
        if tensor.device.type == "meta":
            return tensor.numel(), tensor.numel()
        constant = self._constants.get(_key(tensor))
        if constant is None or not constant.own or tensor.layout != torch.strided:
            return count_nonzeros(tensor), tensor.numel()
        key = (_key(tensor), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))
        if key not in self._densities:
            self._densities[key] = (count_nonzeros(tensor), tensor.numel())
        return self._densities[key]

    def _trace_constants(self, inputs: list[Tensor], out: Any) -> None:
        """What is computed from constants alone is constant; what an input touches no longer is."""
        sources = [self._constants.get(_key(tensor)) for tensor in inputs]
        weight = next((s.weight for s in sources if s and s.weight), None)
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            known = self._constants.get(_key(tensor))
            if known and known.own:
                continue
            if all(sources):
                self._constants[_key(tensor)] = _Constant(_hold(tensor), weight)
            else:
                self._constants.pop(_key(tensor), None)


def count_nonzeros(tensor: Tensor) -> int:
    """How many elements are not zero, whatever the layout."""
    if tensor.is_quantized:
        return int(tensor.dequantize().count_nonzero())
    values = tensor.detach()
    if values.layout != torch.strided:
        values = values.coalesce().values() if values.layout == torch.sparse_coo else values.values()
    return int(values.count_nonzero())


def holder_of(parameter: str) -> str:
    """The path of the layer that a parameter belongs to, seen through parametrizations.

    >>> holder_of("net.0.weight"), holder_of("net.0.parametrizations.weight.original0")
    ('net.0', 'net.0')
    """
    layer, parametrized, _ = f".{parameter}".partition(".parametrizations.")
    return layer.lstrip(".") if parametrized else parameter.rpartition(".")[0]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if _has_storage(tensor) else id(tensor)


def _hold(tensor: Tensor) -> Any:
    return StorageWeakRef(tensor.untyped_storage()) if _has_storage(tensor) else tensor  # type: ignore[no-untyped-call]


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided
