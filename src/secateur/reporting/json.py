"""A receipt as a JSON file."""

import json
from pathlib import Path

from secateur.errors import BadFile
from secateur.report import Report
from secateur.reporting.writing import write_text

__all__ = ["read", "write"]


def write(report: Report, path: str | Path) -> Path:
    """Write ``report`` to ``path``; a crash in the middle leaves what was there before."""
    return write_text(path, report.to_json() + "\n")


def read(path: str | Path) -> Report:
    """Read what `write` wrote.

    Raises:
        BadFile: it is not JSON, or not a receipt.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFile(
            f"{path} is not JSON: {error}; a receipt is written with secateur.reporting.json.write"
        ) from error
    return Report.from_dict(data)
