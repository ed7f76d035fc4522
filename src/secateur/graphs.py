"""A module as an exported graph: the fallback where a class has sizes written into its ``forward``.

`torch.export` writes down every operation of one run. Each integer in it that says a size becomes an attribute of the graph,
``reshape_3_1_2`` for entry 2 of argument 1 of node ``reshape_3``. So coupling, surgery and files treat it as the size that it is,
and know nothing about graphs. Parameters are the model's own, under their own names.
"""

import copy
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from secateur.errors import UnknownOperation
from secateur.examples import Example, leaving_no_trace

__all__ = ["as_graph", "batch_of", "copied", "following"]

_PLACES = {  # the arguments of an operation that say sizes
    0: "zeros ones empty full rand randn",
    1: "view _unsafe_view reshape expand split split_with_sizes new_zeros new_ones new_empty new_full group_norm",
    2: "unflatten slice",
    3: "narrow slice",
    6: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
}
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.floordiv}
_TRAINING = {"batch_norm": 5, "dropout": 2, "feature_dropout": 2, "alpha_dropout": 2}
_LARGEST = 1 << 40  # an open end of a slice is no size


def as_graph(model: nn.Module, example_inputs: Any) -> fx.GraphModule:
    """Capture ``model`` in eval mode as a graph that computes the same; the model is left as it was.

    Args:
        model: any module that `torch.export` captures.
        example_inputs: a tensor, a tuple, or a dict of keyword inputs. The first axis stays open where all inputs share it and
            the code allows it; see `batch_of`. Every other size is fixed.

    Returns:
        A graph module that shares the model's parameters and buffers, by the same names. ``train()`` switches dropout and
        batch norm as it does in the model.

    Raises:
        UnknownOperation: it cannot be captured, or the graph does not compute the same.
    """
    example = Example.of(example_inputs)
    reasons = []
    for open_batch, strict in ((True, False), (False, False), (False, True)):
        found = _tried(model, example, open_batch=open_batch, strict=strict)
        if isinstance(found, fx.GraphModule):
            return found
        reasons.append(found)
    raise UnknownOperation(
        f"torch.export cannot capture {type(model).__name__}: {reasons[1]}; prune it without fallback='graph'"
    )


def batch_of(graph: fx.GraphModule) -> int | None:
    """The batch size that a graph of `as_graph` is fixed to; None if any will do."""
    found = graph.meta.get("batch")
    return found if isinstance(found, int) else None


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, without the warning of torch about how it copies the form of a graph's inputs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance", FutureWarning)
        return copy.deepcopy(model, memo)


@contextmanager
def following(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the path of the module that the running node of a graph came from on top of ``stack``; does nothing to others."""
    if not isinstance(model, fx.GraphModule):
        yield
        return
    spec: Any = getattr(model, "_in_spec", None)

    def forward(*args: Any, **kwargs: Any) -> Any:
        flat = tree_leaves((args, {name: kwargs[name] for name in sorted(kwargs, key=_order(spec))}))
        return model.graph.process_outputs(_Walker(model, stack).run(*flat, enable_io_processing=False))

    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]


class _Walker(fx.Interpreter):
    """Runs a graph node by node; the path stays on the stack when a node raises."""

    def __init__(self, graph: fx.GraphModule, stack: list[str]) -> None:
        super().__init__(graph)
        self.stack = stack

    def run_node(self, n: fx.Node) -> Any:
        self.stack.append(n.meta.get("path", ""))
        out = super().run_node(n)
        self.stack.pop()
        return out


def _order(spec: Any) -> Any:
    names = list(spec.child(1).context) if spec is not None else []
    return lambda name: names.index(name) if name in names else len(names)


def _tried(model: nn.Module, example: Example, *, open_batch: bool, strict: bool) -> fx.GraphModule | str:
    """The graph, or why there is none."""
    try:
        graph = _captured(model, example, open_batch=open_batch, strict=strict)
        _compare(model, graph, example)
    except Exception as error:  # noqa: BLE001 - whatever the capture raises, the next way is tried
        return f"{type(error).__name__}: {str(error).strip()[:200]}"
    return graph


def _captured(model: nn.Module, example: Example, *, open_batch: bool, strict: bool) -> fx.GraphModule:
    args, kwargs = example
    shapes = None
    if open_batch:
        args, kwargs = tree_map_only(Tensor, _two_or_more, (args, kwargs))
        shapes = tree_map(_first_axis, kwargs or args)
    with warnings.catch_warnings(), leaving_no_trace(model):
        warnings.simplefilter("ignore")  # about torch.export's own insides
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=strict)
        graph = program.module()
    assert isinstance(graph, fx.GraphModule)
    graph.meta = {"batch": _fixed_batch(graph)}
    paths = dict(model.named_modules())
    _clean_(graph, paths)
    _name_sizes_(graph)
    _name_modes_(graph, paths)
    graph.recompile()
    graph.__dict__.pop("train"), graph.__dict__.pop("eval")  # both refuse
    return graph.train(model.training)


def _two_or_more(tensor: Tensor) -> Tensor:
    """A batch of one is taken for a constant, so it is doubled."""
    return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == 1 else tensor


def _first_axis(leaf: Any) -> Any:
    return {0: Dim.AUTO} if isinstance(leaf, Tensor) and leaf.dim() else None


def _fixed_batch(graph: fx.GraphModule) -> int | None:
    values = [n.meta.get("val") for n in graph.graph.nodes if n.op == "placeholder"]
    sizes = [v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()]
    known = [size if isinstance(size, int) else size.node.maybe_as_int() for size in sizes]
    return next((size for size in known if size is not None), None)


def _clean_(graph: fx.GraphModule, paths: dict[str, nn.Module]) -> None:
    """Drop what guards sizes, and all notes but where a node came from."""
    graph._forward_pre_hooks.clear()
    for node in reversed(list(graph.graph.nodes)):
        guards = node.op == "call_module" and node.target == "_guards_fn"
        if (guards or "assert" in _name(node.target)) and not node.users:
            graph.graph.erase_node(node)
            continue
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        node.meta = {"path": stack[-1]} if stack and stack[-1] in paths else {}
    if hasattr(graph, "_guards_fn"):
        del graph._guards_fn


def _name(target: Any) -> str:
    """``view`` for ``aten.view.default``."""
    return target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else ""


def _name_sizes_(graph: fx.GraphModule) -> None:
    """Let every integer that says a size be an attribute."""
    for node in list(graph.graph.nodes):
        name = _name(node.target)
        places = {place for place, names in _PLACES.items() if name in names.split()}
        if node.target in _ARITHMETIC:
            places = {0, 1}
        with graph.graph.inserting_before(node):
            node.args = tuple(
                _named(graph, f"{node.name}_{k}", arg) if k in places else arg for k, arg in enumerate(node.args)
            )


def _named(graph: fx.GraphModule, name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_named(graph, f"{name}_{k}", entry) for k, entry in enumerate(value)]
    if type(value) is not int or not 1 < value < _LARGEST:
        return value
    setattr(graph, name, value)
    return graph.graph.create_node("get_attr", name)


def _name_modes_(graph: fx.GraphModule, paths: dict[str, nn.Module]) -> None:
    """Let dropout and batch norm follow ``training``, as in the model."""
    for node in list(graph.graph.nodes):
        place = _TRAINING.get(_name(node.target))
        if place is None or len(node.args) <= place or node.args[place] is not False:
            continue
        own = paths.get(node.meta.get("path", ""))
        if _name(node.target) != "batch_norm" or isinstance(own, nn.modules.batchnorm._BatchNorm):
            with graph.graph.inserting_before(node):
                node.update_arg(place, graph.graph.create_node("get_attr", "training"))


def _compare(model: nn.Module, graph: fx.GraphModule, example: Example) -> None:
    """Refuse a graph that does not compute what the model does."""
    with leaving_no_trace(model):
        expected = model(*example.args, **example.kwargs)
    with leaving_no_trace(graph):
        found = graph(*example.args, **example.kwargs)
    for a, b in zip(_tensors(expected), _tensors(found), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * float(a.abs().max()) if a.numel() else 0.0)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
