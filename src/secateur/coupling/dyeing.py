"""Run a model once with dye: a dispatch mode that sees every ATen operation and colours what comes out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.coupling.layering import axes, compress
from secateur.coupling.palette import Freeze, Palette
from secateur.coupling.rulebook import RULES, advice, is_torch, rule, rule_for
from secateur.errors import UnknownOperation
from secateur.graphs import following

__all__ = ["RULES", "Dye", "rule"]

Layers = tuple[Tensor, ...]


class Dye(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Colours everything that a model computes from its parameters."""

    def __init__(self, model: nn.Module, *, whole: bool = True, shrink: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.palette = Palette()
        self.layers: Any = (
            WeakTensorKeyDictionary()
        )  # beside the tensors: modules may cache some, and nothing stays on them
        self.debts: Any = WeakTensorKeyDictionary()
        self.whole = (
            whole  # heads and convolution groups leave whole; otherwise channels inside them leave, from all alike
        )
        self.shrink = shrink  # what is normalised together may leave, though the statistics of what stays then change
        self.blurred: list[tuple[Tensor, Freeze]] = []  # colours in such statistics
        self.owners: dict[str, dict[int, Tensor]] = {}  # parameter -> dimension -> colours
        self.tables: dict[tuple[Any, ...], Tensor] = {}  # layers that vary on several axes must stay rectangular
        self.heads: list[tuple[Tensor, str]] = []  # colours of units that leave whole, and what they are called
        self.shapes = {n: tuple(t.shape) for n, t in [*model.named_parameters(), *model.named_buffers()]}
        self.aliases = _aliases(model)
        self.scaled: frozenset[tuple[str, int]] = frozenset()  # places that stay out of masks; see `Group`
        self.unread: dict[int, str] = {}  # what no operation has met yet
        self.names: dict[int, str] = {}
        self.stack: list[str] = []
        self.operation = ""
        self.unknown = ""  # what is missing for the first operation without a rule
        self._dye_parameters(model)
        if not whole:
            self._hold_multihead(model)

    def _dye_parameters(self, model: nn.Module) -> None:
        parameters = list(model.named_parameters())
        if any(parameter.requires_grad for _, parameter in parameters):  # others that do not train are constants
            parameters.sort(key=lambda pair: not pair[1].requires_grad)
            trained = sum(parameter.requires_grad for _, parameter in parameters)
        else:
            trained = len(parameters)
        for k, (name, tensor) in enumerate([*parameters, *model.named_buffers()]):
            if k == trained:
                self.buffers = range(self.palette.size, self.palette.size)
            if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dim() == 0:
                continue
            self.unread[id(tensor)] = self.names[id(tensor)] = name
            layers = []
            for d, size in enumerate(tensor.shape):
                if size > 1:
                    colours = self.owners.setdefault(name, {}).setdefault(d, self.palette.fresh(size))
                    view = [1] * tensor.dim()
                    view[d] = size
                    layers.append(colours.view(view).expand(tensor.shape))
            self.put(tensor, tuple(layers))
        first = getattr(self, "buffers", range(self.palette.size, 0)).start
        self.buffers = range(first, self.palette.size)

    def _hold_multihead(self, model: nn.Module) -> None:
        """PyTorch's own attention knows one width for all heads, which also sets its scale."""
        self.operation = "nn.MultiheadAttention"
        for path, layer in model.named_modules():
            if isinstance(layer, nn.MultiheadAttention):
                for name, dim in (
                    ("in_proj_weight", 0),
                    ("q_proj_weight", 0),
                    ("v_proj_weight", 0),
                    ("out_proj.weight", 1),
                ):
                    owned = self.owners.get(f"{path}.{name}".lstrip("."), {})
                    if dim in owned:
                        self.freeze(owned[dim], "is the width of a head, which sets its scale")

    def from_buffer(self, layer: Tensor) -> bool:
        """Whether a layer was made by buffers alone."""
        return int(layer[(0,) * layer.dim()]) in self.buffers

    def from_nobody(self, layer: Tensor) -> bool:
        """Whether a layer is made of jokers: of sizes that no tensor of the model owns."""
        return int(layer[(0,) * layer.dim()]) >= self.buffers.stop

    def of(self, tensor: Any) -> Layers:
        """The layers of a tensor; none for constants."""
        return self.layers.get(tensor, ()) if isinstance(tensor, Tensor) else ()

    def put(self, tensor: Tensor, layers: Layers) -> None:
        """Dye a tensor."""
        kept = tuple(layer for layer in layers if axes(layer))
        for layer in kept:
            if layer.shape != tensor.shape:
                raise UnknownOperation(
                    f"the coupling rule for `{self.operation}` gave a layer of shape {list(layer.shape)} for an output of shape "
                    f"{list(tensor.shape)}; a layer has the shape of its tensor"
                )
            varying = axes(layer)
            if len(varying) > 1:
                small = layer
                for d in range(layer.dim()):
                    if d not in varying:
                        small = small.narrow(d, 0, 1)
                small = small.squeeze()
                key = (small.data_ptr(), tuple(small.shape), small.stride())
                self.tables.setdefault(key, small)
        self.layers[tensor] = kept

    def why(self, reason: str) -> Freeze:
        """A reason with the place we are at."""
        return Freeze(self.operation, self.stack[-1] if self.stack else "", reason)

    def freeze(self, layer: Tensor, reason: str) -> None:
        """The colours of this layer may not leave."""
        self.palette.freeze(layer, self.why(reason))

    def freeze_if_used(self, out: Tensor, layer: Tensor, reason: str) -> None:
        """The colours of this layer may not leave if anything reads ``out``: averaged attention is often thrown away."""
        self.debts[out] = (*self.debts.get(out, ()), (layer, self.why(reason)))

    def blur(self, layer: Tensor, reason: str) -> None:
        """The colours of this layer may leave, and what is narrowed then differs from what is masked."""
        self.blurred.append((layer, self.why(reason)))

    def use(self, tree: Any) -> None:
        """Settle what `freeze_if_used` left open on these tensors."""
        for tensor in _tensors(tree) if self.debts else ():
            for layer, why in self.debts.pop(tensor, ()):
                self.palette.freeze(layer, why)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Colours at equal positions leave together."""
        self.palette.tie(a, b)

    def along(self, layer: Tensor, axis: int) -> Tensor:
        """One colour per index of ``axis``, ``[size]``: everything that shares an index is tied."""
        axis %= layer.dim()
        first = layer
        for d in range(layer.dim()):
            if d != axis:
                first = first.narrow(d, 0, 1)
        if len(axes(layer)) > 1 or (axes(layer) and axes(layer) != (axis,)):
            self.tie(layer, first.expand_as(layer))
        return first.reshape(-1)

    def on(self, tensor: Any, axis: int) -> list[Tensor]:
        """The layers that vary along ``axis``."""
        return [layer for layer in self.of(tensor) if axis % layer.dim() in axes(layer)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.use((args, kwargs))
        for tensor in _tensors((args, kwargs)):
            self.unread.pop(id(tensor), None)
        name = func._schema.name
        name = name.removeprefix("aten::")
        self.operation = name
        outs = [o for o in (out if isinstance(out, tuple | list) else [out]) if isinstance(o, Tensor)]
        if not outs:
            return out
        found = rule_for(name)
        if found is None:
            self._hold_without_rule(name, (args, kwargs))
        layers: Any
        if any(t.is_floating_point() and not t.numel() for t in (outs[0], *_tensors((args, kwargs)))):
            layers = self._pass_by(outs[0], (args, kwargs))
        else:
            layers = (found and found(self, out, *args, **kwargs)) or ()
        each = layers if isinstance(layers, list) else [layers] + [()] * (len(outs) - 1)
        for o, dyes in zip(outs, each, strict=False):  # further outputs carry no channels
            self.put(o, tuple(compress(layer) for layer in dyes))
        return out

    def _hold_without_rule(self, name: str, tree: Any) -> None:
        if not any(self.of(tensor) for tensor in _tensors(tree)):
            return  # constants made from constants
        self.unknown = self.unknown or advice(name, self.stack[-1] if self.stack else "")
        if not is_torch(name):
            raise UnknownOperation(self.unknown)
        self._hold_all(tree, "has no coupling rule")

    def _pass_by(self, out: Tensor, tree: Any) -> Layers:
        """Rules count on elements, and an expert without tokens has none: it stays, what it would have changed passes."""
        tensors = list(_tensors(tree))
        passes = [t for t in tensors[:1] if t.numel() and t.shape == out.shape]
        self._hold_all(tensors[len(passes) :], "meets a tensor that is empty in this example")
        return self.of(passes[0]) if passes else ()

    def _hold_all(self, tree: Any, reason: str) -> None:
        for tensor in _tensors(tree):
            for layer in self.of(tensor):
                self.freeze(layer, reason)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know which module is running, for errors and reasons."""
        names = {module: path for path, module in model.named_modules()}

        def leave(*_: object) -> None:
            self.stack.pop()

        before = nn.modules.module.register_module_forward_pre_hook(lambda m, _: self.stack.append(names.get(m, "?")))
        after = nn.modules.module.register_module_forward_hook(leave, always_call=True)
        try:
            with following(model, self.stack):
                yield
        finally:
            before.remove()
            after.remove()


def _aliases(model: nn.Module) -> dict[str, str]:
    """Every name of every tensor to the first: tied weights and reused modules have several."""
    first = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first[id(tensor)] for name, tensor in every}


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from _tensors(value)
