"""Receipts take little room in a file: rows of a table are turned into columns, so that each name is written once.

    [{"a": 1, "b": 2}, {"a": 3, "b": 4}]     ->     {"columns": {"a": [1, 3], "b": [2, 4]}}

What is absent or empty is left out; readers put the defaults back.
"""

from typing import Any

from secateur.errors import BadFile

__all__ = ["compact", "expand"]


def compact(value: Any) -> Any:
    """JSON values with tables as columns, and without what is empty.

    >>> compact({"layers": [{"name": "a", "macs": 1}, {"name": "b", "macs": 2}], "notes": [], "score": None})
    {'layers': {'columns': {'name': ['a', 'b'], 'macs': [1, 2]}}}
    """
    if isinstance(value, dict):
        found = {key: compact(entry) for key, entry in value.items()}
        return {key: entry for key, entry in found.items() if entry is not None and entry not in ({}, [], "", ())}
    if isinstance(value, list | tuple):
        rows = list(value)
        if rows and all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
            return {"columns": {key: [row[key] for row in rows] for key in rows[0]}}
        return [compact(row) for row in rows]
    return value


def expand(value: Any) -> Any:
    """Undo `compact`, less what was empty.

    >>> expand({"columns": {"a": [1, 3], "b": [2, 4]}})
    [{'a': 1, 'b': 2}, {'a': 3, 'b': 4}]

    Raises:
        BadFile: columns of different lengths.
    """
    if isinstance(value, dict):
        columns = value.get("columns")
        if set(value) == {"columns"} and isinstance(columns, dict):
            return _rows(columns)
        return {key: expand(entry) for key, entry in value.items()}
    return [expand(entry) for entry in value] if isinstance(value, list) else value


def _rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise BadFile(f"the receipt has a table with columns of different lengths: {', '.join(map(str, columns))}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
