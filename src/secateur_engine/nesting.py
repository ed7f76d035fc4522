"""How inputs and outputs are nested, as JSON: tensors are their numbers, and what is no tensor is written down as it was.

3                     tensor number 3
{"is": null}          no tensor: None, a number, a text
{"tuple": [...]}      also {"list": [...]} and {"dict": [[key, ...], ...]}
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from secateur_engine.errors import BadInput

__all__ = ["Said", "filled", "matched", "tensors_in", "written"]

Said = Any


def written(tree: Any, number: Callable[[Any], int | None]) -> Said:
    """``tree`` in the form above; ``number`` says which tensor a leaf is, None for what is none."""
    which = number(tree)
    if which is not None:
        return which
    if isinstance(tree, Mapping):
        return {"dict": [[key, written(part, number)] for key, part in tree.items()]}
    if isinstance(tree, tuple | list):
        return {"list" if isinstance(tree, list) else "tuple": [written(part, number) for part in tree]}
    return {"is": _plain(tree)}


def filled(said: Said, tensors: Sequence[Any]) -> Any:
    """The tree with its tensors in their places."""
    if isinstance(said, int):
        return tensors[said]
    ((kind, parts),) = said.items()
    if kind == "is":
        return parts
    if kind == "dict":
        return {key: filled(part, tensors) for key, part in parts}
    made = [filled(part, tensors) for part in parts]
    return made if {"list": True, "tuple": False}[kind] else tuple(made)


def tensors_in(said: Said) -> list[int]:
    """The numbers of its tensors."""
    if isinstance(said, int):
        return [said]
    ((kind, parts),) = said.items()
    if kind == "is":
        return []
    return [k for part in parts for k in tensors_in(part[1] if kind == "dict" else part)]


def matched(takes: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The tensors of a call, in order.

    Args:
        takes: ``args``, ``kwargs`` (a list of pairs) as in the form above, and ``names`` of the positional ones, as far as they are known.
        args: of the call.
        kwargs: of the call.

    Raises:
        BadInput: an input is missing, was not there when the model was compiled, is nested otherwise, or is no tensor and has another value.
    """
    names = list(takes["names"])
    wanted = _named(takes["args"], takes["kwargs"], names)
    given = _named(args, kwargs.items(), names)
    found: dict[int, Any] = {}
    for name, value in given.items():
        if name in wanted:
            _match(wanted[name], value, _said(name), found)
        elif value is not None:
            raise BadInput(
                f"the model was compiled for {_list(wanted)}, and is called with {_said(name)}: compile it with that too"
            )
    missing = [name for name, said in wanted.items() if name not in given and tensors_in(said)]
    if missing:
        raise BadInput(f"the model takes {_list(wanted)}; missing: {_list(missing)}")
    return [found[k] for k in range(len(found))]


def _named(args: Sequence[Any], kwargs: Iterable[Any], names: Sequence[str]) -> dict[Any, Any]:
    made = {names[k] if k < len(names) else k: arg for k, arg in enumerate(args)}
    for name, value in kwargs:
        if name in made:
            raise BadInput(f"input {name!r} is given twice")
        made[name] = value
    return made


def _match(said: Said, given: Any, where: str, found: dict[int, Any]) -> None:
    if isinstance(said, int):
        if given is None or isinstance(given, Mapping | str):
            raise BadInput(f"{where} is {type(given).__name__}, and an array or a tensor is expected")
        found[said] = given
        return
    ((kind, parts),) = said.items()
    if kind == "is":
        if _plain(given) != parts:
            raise BadInput(
                f"{where} is {given!r}; the model was compiled with {parts!r}, and what is no tensor is fixed: compile it again with that"
            )
    elif kind == "dict":
        keys = [key for key, _ in parts]
        if not isinstance(given, Mapping) or set(given) != set(keys):
            raise BadInput(f"{where} is not a mapping with {_list(keys)}, as it was when the model was compiled")
        for key, part in parts:
            _match(part, given[key], f"{where}[{key!r}]", found)
    else:
        if not isinstance(given, tuple | list) or len(given) != len(parts):
            raise BadInput(f"{where} is not a {kind} of {len(parts)}, as it was when the model was compiled")
        for k, (part, one) in enumerate(zip(parts, given, strict=True)):
            _match(part, one, f"{where}[{k}]", found)


def _plain(leaf: Any) -> Any:
    return leaf if leaf is None or isinstance(leaf, bool | int | float | str) else str(leaf)


def _said(name: Any) -> str:
    return f"input {name!r}" if isinstance(name, str) else f"input {name}"


def _list(names: Iterable[Any]) -> str:
    return ", ".join(map(repr, names)) or "no inputs"
