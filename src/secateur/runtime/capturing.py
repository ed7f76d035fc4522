"""One run of a module as a graph, through `torch.export`: operations stay as large as they are written (linear, attention, LSTM).

What does not depend on the inputs is computed here once: masks, rotary tables, position numbers. In-place operations are read as if
they made a new value; one that writes through a view of something read later is refused.
"""

import operator
import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only, tree_unflatten

from secateur.errors import UnknownOperation
from secateur.examples import Example, leaving_no_trace
from secateur.runtime.aliases import COPIES, FILLED, SAME, VIEWS, as_written, in_place
from secateur.runtime.graph import Graph, Node, Value, values_in
from secateur_engine.nesting import tensors_in, written

__all__ = ["captured"]


def captured(model: nn.Module, example: Example) -> Graph:
    """The graph of ``model`` on ``example``, with every size fixed.

    Raises:
        UnknownOperation: it cannot be exported.
    """
    args, kwargs = _told_apart((example.args, example.kwargs))
    with warnings.catch_warnings(), leaving_no_trace(model):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise UnknownOperation(
                f"torch.export cannot capture {type(model).__name__} ({type(error).__name__}: {str(error).strip()[:300]}); "
                "compile the part of it that can be exported"
            ) from error
        try:
            return _Reader(program).read()
        except _WritesThroughView:  # slower to capture, and batch norms stay operations of their own
            return _Reader(program.run_decompositions({})).read()
        except UnknownOperation:
            raise
        except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:  # sizes that depend on numbers
            raise UnknownOperation(
                f"the graph of {type(model).__name__} cannot be followed ({type(error).__name__}: {str(error)[:200]}); compile a part of it"
            ) from error


def _told_apart(tree: Any) -> Any:
    """A tensor that is given twice is two inputs; `torch.export` would make one of them."""
    seen: set[int] = set()

    def own(leaf: torch.Tensor) -> torch.Tensor:
        known = id(leaf) in seen
        seen.add(id(leaf))
        return leaf.clone() if known else leaf

    return tree_map_only(torch.Tensor, own, tree)


class _WritesThroughView(Exception):
    """An in-place operation changes a tensor that is also seen otherwise."""


class _Reader:
    def __init__(self, program: Any) -> None:
        module = program.module()
        assert isinstance(module, fx.GraphModule)
        self.module, self.program = module, program
        self.known: dict[fx.Node, Any] = {}
        self.graph = Graph([], [], [], None)
        self.writes = any(in_place(_name(node.target)) for part in _modules(module) for node in part.graph.nodes)

    def read(self) -> Graph:
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "get_attr":
                self.known[node] = _constant(_attribute(self.module, node.target))
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._output(node)
        for done in self.graph.nodes:
            for value in values_in([done.args, done.kwargs]):
                value.users.append(done)
        return self.graph

    def _input(self, node: fx.Node) -> None:
        meta = node.meta["val"]
        if not isinstance(meta, torch.Tensor):
            self.known[node] = meta
            return
        value = Value(tuple(meta.shape), meta.dtype)
        self.graph.inputs.append(value)
        self.known[node] = value

    def _output(self, node: fx.Node) -> None:
        found = tree_map(lambda n: self.known[n] if isinstance(n, fx.Node) else n, node.args[0])
        leaves = tree_flatten(found)[0]
        self.graph.outputs = [leaf for leaf in leaves if isinstance(leaf, Value)]
        places = {id(leaf): _Tensor(k) for k, leaf in enumerate(self.graph.outputs)}
        marked = [places.get(id(leaf), leaf) for leaf in leaves]
        spec = self.program.call_spec.out_spec
        whole = tree_unflatten(marked, spec) if spec is not None and spec.num_leaves == len(marked) else tuple(marked)
        self.graph.result = written(whole, _number)
        if len(tensors_in(self.graph.result)) != sum(isinstance(m, _Tensor) for m in marked):
            self.graph.result = written(tuple(marked), _number)  # a class of its own, which nobody can make without it

    def _call(self, node: fx.Node) -> None:
        args, kwargs = tree_map(self._known, (tuple(node.args), dict(node.kwargs)))
        name = _name(node.target)
        always = "dropout" in name and True in (*args[2:3], kwargs.get("train"))  # also when the model is in eval mode
        if self.writes and isinstance(args[0] if args else None, Value) and not always:
            name = as_written(node, name, args[0].dtype)
        if name in SAME and isinstance(args[0], Value) and not always and not (self.writes and name in COPIES):
            self.known[node] = args[0]
            return
        if node.target is operator.getitem:
            self.known[node] = args[0][args[1]]
            return
        if name in ("wrap_with_autocast", "wrap_with_set_grad_enabled"):
            self.known[node] = self._inlined(name, args)
            return
        inputs = list(values_in([args, kwargs]))
        if name in FILLED:
            self.known[node] = _constant(_filled(name, args, node.meta["val"]))
            return
        chance = always or any(word in name for word in ("rand", "bernoulli", "multinomial", "normal", "exponential"))
        if all(v.tensor is not None for v in inputs) and not chance:
            plain = tree_map(lambda v: v.tensor if isinstance(v, Value) else v, (args, kwargs))
            self.known[node] = tree_map(_constant, _ran(node.target, plain))
            return
        self._add(node, name, args, kwargs)

    def _inlined(self, name: str, args: Any) -> Any:
        """What stands within a context, as if it stood outside of it."""
        at = next(k for k, arg in enumerate(args) if isinstance(arg, fx.GraphModule))
        inner, given = args[at], iter(args[at + 1 :])
        if name == "wrap_with_autocast" and args[2]:
            raise UnknownOperation(
                "the model runs under autocast inside; the engine computes in float32: compile it without"
            )
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                self.known[node] = next(given)
            elif node.op == "get_attr":
                self.known[node] = _constant(_attribute(inner, node.target))
            elif node.op == "call_function":
                self._call(node)
        return tree_map(self._known, node.args[0])  # the last one is the output

    def _add(self, node: fx.Node, name: str, args: Any, kwargs: Any) -> None:
        meta = node.meta.get("val")
        if meta is None:
            raise UnknownOperation(f"{node.target} makes nothing that can be followed; compile the model without it")
        shapes = list(meta) if isinstance(meta, list | tuple) else [meta]
        outs = [Value(tuple(m.shape), m.dtype) for m in shapes if isinstance(m, torch.Tensor)]
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        made = Node(name.removesuffix("_"), node.target, args, kwargs, outs, stack[-1] if stack else "")
        for out in outs:
            out.node = made
        self.graph.nodes.append(made)
        self.known[node] = outs if isinstance(meta, list | tuple) else outs[0] if outs else None
        if in_place(name):
            self._overwrite(args[0], outs[0])

    def _overwrite(self, old: Value, new: Value) -> None:
        if (old.node is not None and old.node.name in VIEWS) or old.tensor is not None:
            raise _WritesThroughView
        for other, value in self.known.items():
            if value is old:
                self.known[other] = new

    def _known(self, leaf: Any) -> Any:
        return self.known[leaf] if isinstance(leaf, fx.Node) else leaf


def _modules(module: fx.GraphModule) -> list[fx.GraphModule]:
    return [part for part in module.modules() if isinstance(part, fx.GraphModule)]


def _constant(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return Value(tuple(leaf.shape), leaf.dtype, tensor=leaf.detach())


def _ran(target: Any, plain: Any) -> Any:
    return target(*plain[0], **plain[1])


def _filled(name: str, args: Any, like: torch.Tensor) -> torch.Tensor:
    number = args[-1] if "full" in name else 1 if "ones" in name else 0
    return torch.full(tuple(like.shape), number, dtype=like.dtype)


def _attribute(module: nn.Module, path: Any) -> Any:
    found: Any = module
    for part in str(path).split("."):
        found = getattr(found, part)
    return found


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.rsplit("::", 1)[-1]
    return getattr(target, "__name__", str(target))


class _Tensor:
    """Stands for an output in the tree of all that a model gives."""

    def __init__(self, number: int) -> None:
        self.number = number


def _number(leaf: Any) -> int | None:
    return leaf.number if isinstance(leaf, _Tensor) else None
