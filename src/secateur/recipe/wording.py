"""From pydantic's error records to one clear line each: the key's path, what is wrong, what to write instead."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails

__all__ = ["Problem", "Problems", "lines_of"]

Problem = tuple[str, str]  # key path, what is wrong with it

_NEEDED = {
    "string_type": "text",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "dict_type": "a table",
    "model_type": "a table",
    "tuple_type": "a list",
}
_LIMITS = {"greater_than_equal": ("at least", "ge"), "less_than": ("below", "lt")}


class Problems(ValueError):
    """Several problems in one value, each with the rest of its key path."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{key}: {text}" for key, text in problems))


def lines_of(error: ValidationError, known_keys: Callable[[tuple[str, ...]], Sequence[str]]) -> list[Problem]:
    """Every problem in ``error``; ``known_keys`` lists what the table at a path may hold."""
    found: dict[str, list[Problem]] = {}
    for record in error.errors():
        location = tuple(str(part) for part in record["loc"])
        for path, text in _of_record(record, location, known_keys):
            found.setdefault(path, []).append((path, text))
    # Where a value may have one of several types, pydantic reports each attempt; the first line says enough.
    return [problem for problems in found.values() for problem in problems[:1]]


def _of_record(
    record: ErrorDetails, location: tuple[str, ...], known_keys: Callable[[tuple[str, ...]], Sequence[str]]
) -> list[Problem]:
    path = ".".join(location)
    cause = record.get("ctx", {}).get("error")
    if isinstance(cause, Problems):
        return [(".".join(filter(None, (path, key))), text) for key, text in cause.problems]
    if cause is not None:
        return [(path, str(cause))]
    return [(path, _said(record, location, known_keys))]


def _said(
    record: ErrorDetails, location: tuple[str, ...], known_keys: Callable[[tuple[str, ...]], Sequence[str]]
) -> str:
    kind, value = record["type"], record["input"]
    if kind == "extra_forbidden":
        known = known_keys(location[:-1])
        near = get_close_matches(location[-1], known, n=1)
        return f"unknown key{f'; did you mean {near[0]!r}?' if near else ''} (there are: {', '.join(known) or 'none'})"
    if kind == "missing":
        return "missing"
    if kind in _NEEDED:
        return f"must be {_NEEDED[kind]}, not {_shown(value)}"
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return f"must be {words} {record['ctx'][limit]}, not {value}"
    return f"{record['msg'][0].lower()}{record['msg'][1:]}, not {_shown(value)}"


def _shown(value: object) -> str:
    words = {
        str: "the text",
        bool: "",
        int: "the number",
        float: "the number",
        dict: "the table",
        list: "the list",
        tuple: "the list",
    }
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{words.get(type(value), type(value).__name__)} {shown}".strip()
