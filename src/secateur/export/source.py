"""Readable Python for a narrowed network: a module of its own that needs torch alone and narrows a new instance of the class.

    from narrow_net import narrow
    model = narrow(Net()); model.load_state_dict(plain_state_dict)

Index lists that several tensors share, as coupled channels do, are written once, under the name of the tensor that comes first.
"""

import inspect
import os
import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn

from secateur import narrow_attention
from secateur.errors import WrongModel
from secateur.narrow_attention import NarrowAttention
from secateur.narrowing.narrow import structure_of
from secateur.replacing import replacing
from secateur.report import Pruned
from secateur.structure import Structure

__all__ = ["source"]

_TEMPLATE = Path(__file__).with_name("narrowed.py.j2")
_SIZES = [
    "in_features",
    "out_features",
    "in1_features",
    "in2_features",
    "in_channels",
    "out_channels",
    "groups",
    "num_features",
    "num_channels",
    "num_groups",
    "normalized_shape",
    "num_embeddings",
    "embedding_dim",
    "num_parameters",
    "input_size",
    "hidden_size",
    "proj_size",
    "num_heads",
]  # the attributes of PyTorch's own layers that follow their tensors


def source(model: nn.Module | Pruned, path: str | os.PathLike[str]) -> Path:
    """Write a Python module with ``narrow(model)``, which turns a new instance of the original class into this narrowed one.

    The file imports torch and nothing else. It holds no weights: those are the plain ``state_dict`` of the narrowed model.

    Args:
        model: a narrowed model, or what pruning with ``granularity="channel"`` returned.
        path: the file; an old one is replaced when the new one is whole.

    Returns:
        The path.

    Raises:
        WrongModel: the model was not narrowed, or a captured graph of it was.
        OSError: the file cannot be written.
    """
    network = model.model if isinstance(model, Pruned) else model
    structure = structure_of(network)
    if structure is None:
        raise WrongModel(
            f"{type(network).__name__} was not narrowed, so there is nothing to write: prune it with granularity='channel' or pass "
            "what secateur.narrow or secateur.load returned"
        )
    if getattr(structure, "graph", None) is not None:
        raise WrongModel(
            f"the code of {type(network).__name__} could not follow, so a captured graph of it was narrowed and not the class; "
            "source can be written for narrowed classes alone. Keep it with secateur.save, or use .code of the graph module"
        )
    with replacing(Path(os.path.realpath(path))) as beside:
        beside.write_text(_text(network, structure), encoding="utf-8")
    return Path(path)


def _text(model: nn.Module, structure: Structure) -> str:
    from jinja2 import Environment, StrictUndefined

    plain = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False)
    names, lists = _shared(structure)
    attention = [path for path, module in model.named_modules() if type(module) is NarrowAttention]
    kept = {tensor: {dim: names[tensor, dim] for dim in dims} for tensor, dims in structure.kept.items()}
    return plain.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        network=type(model).__name__,
        origin=f"{type(model).__module__}.{type(model).__qualname__}",
        widths=_widths(model, structure),
        lists=[(name, _spell(indices), size) for name, (indices, size) in lists.items()],
        shapes=_quoted(structure.shapes),
        kept=_quoted(kept),
        sizes=_quoted(_sizes(model, structure)),
        attention=attention,
        classes=_classes() if attention else "",
    )


def _quoted(table: Mapping[str, Any]) -> dict[str, Any]:
    return {repr(name): value for name, value in table.items()}


def _shared(structure: Structure) -> tuple[dict[tuple[str, int], str], dict[str, tuple[tuple[int, ...], int]]]:
    """A name for every list of indices, and where each is used."""
    names: dict[tuple[str, int], str] = {}
    of_list: dict[tuple[tuple[int, ...], int], str] = {}
    for tensor, dims in structure.kept.items():
        for dim, kept in dims.items():
            key = (kept, structure.shapes[tensor][dim])
            if key not in of_list:
                of_list[key] = _fresh(tensor, dim, of_list.values())
            names[tensor, dim] = of_list[key]
    return names, {name: key for key, name in of_list.items()}


def _fresh(tensor: str, dim: int, taken: Any) -> str:
    """A constant's name from a tensor's: ``LAYER1_0_CONV1``."""
    word = re.sub(r"\W+", "_", tensor.removesuffix(".weight")).strip("_").upper() or "WEIGHT"
    word = f"KEPT_{word}" if word[0].isdigit() else word
    wanted = [word, f"{word}_DIM{dim}", *(f"{word}_DIM{dim}_{k}" for k in range(2, 1000))]
    reserved = {*taken, "SHAPES", "KEPT", "SIZES", "ATTENTION", "F"}
    return next(name for name in wanted if name not in reserved)


def _spell(kept: tuple[int, ...]) -> str:
    """Ascending indices as Python, runs as ranges.

    >>> _spell((0, 1, 2, 5, 7, 8, 9))
    '[*range(0, 3), 5, *range(7, 10)]'
    """
    runs = [[i for _, i in run] for _, run in groupby(enumerate(kept), lambda pair: pair[1] - pair[0])]
    if len(runs) == 1 and len(kept) > 2:
        return f"range({kept[0]}, {kept[-1] + 1})"
    parts = [f"*range({r[0]}, {r[-1] + 1})" if len(r) > 2 else ", ".join(map(str, r)) for r in runs]
    return f"[{', '.join(parts)}]"


def _sizes(model: nn.Module, structure: Structure) -> Mapping[str, dict[str, Any]]:
    """The attributes of every touched module as they now are: PyTorch's own layers, then those of the user's classes."""
    sizes: dict[str, dict[str, Any]] = {}
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    cut = {id(tensors[name]) for name in structure.kept}  # by identity: tied tensors sit in several layers
    for path, module in model.named_modules():
        deep = isinstance(module, nn.MultiheadAttention)  # whose width is that of the layer inside
        own = {id(t) for t in [*module.parameters(recurse=deep), *module.buffers(recurse=deep)]}
        if own & cut and type(module).__module__.startswith(("torch.nn.", "secateur.")):
            found = {name: vars(module)[name] for name in _SIZES if name in vars(module)}
            if found:
                sizes[path] = found
    for (path, attribute), size in structure.sizes.items():
        name, _, place = attribute.partition(".")
        value = getattr(model.get_submodule(path), name)
        sizes.setdefault(path, {})[name] = value if place else size
    return sizes


def _widths(model: nn.Module, structure: Structure) -> list[tuple[str, str, str]]:
    """Every weight that shrank, with its shape before and after; what is as long as they are goes without saying."""
    now = {name: tuple(t.shape) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    shown = [name for name in structure.shapes if len(now[name]) > 1] or list(structure.shapes)
    long = max(map(len, shown))
    return [(f"{name:{long}}", _by(structure.shapes[name]), _by(now[name])) for name in shown]


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _classes() -> str:
    """The attention that narrowing puts in, as it stands in this package."""
    parts = (NarrowAttention, narrow_attention._added)
    return re.sub(r"  # noqa.*", "", "\n\n".join(inspect.getsource(part) for part in parts)).rstrip()
