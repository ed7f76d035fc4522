"""Measured costs of a network at several widths, as a text file that anyone can write on any device.

    # secateur cost table 1
    # unit: mJ
    # measured: Pixel 6, one thread, power monitor
    conv1,conv2,fc1,cost
    20,50,500,3.21
    12,20,100,1.07

One column for each group of coupled channels, by the name that `secateur.couple` gives it, with the units that are left; the last one is the cost.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from secateur.errors import BadFile
from secateur.replacing import replacing

__all__ = ["CostTable"]

_FIRST = "# secateur cost table 1"


@final
@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Widths and what was measured there.

    Args:
        groups: names of the columns.
        widths: a row for each measurement, units left by group.
        costs: as many numbers.
        unit: of the costs.
        measured: what was measured, how and where, in words.
    """

    groups: tuple[str, ...]
    widths: tuple[tuple[int, ...], ...]
    costs: tuple[float, ...]
    unit: str = ""
    measured: str = ""

    @property
    def counts(self) -> list[dict[str, int]]:
        """The rows as mappings."""
        return [dict(zip(self.groups, row, strict=True)) for row in self.widths]

    @classmethod
    def of(
        cls, counts: Sequence[Mapping[str, int]], costs: Sequence[float], *, unit: str = "", measured: str = ""
    ) -> "CostTable":
        """From mappings."""
        groups = tuple(counts[0])
        rows = tuple(tuple(row[g] for g in groups) for row in counts)
        return cls(groups=groups, widths=rows, costs=tuple(costs), unit=unit, measured=measured)

    def part(self, rows: Sequence[int]) -> "CostTable":
        """Some of the rows."""
        return CostTable(
            groups=self.groups,
            widths=tuple(self.widths[k] for k in rows),
            costs=tuple(self.costs[k] for k in rows),
            unit=self.unit,
            measured=self.measured,
        )

    def write(self, path: str | Path) -> Path:
        """Write the file; a crash in the middle leaves the old one."""
        path = Path(path)
        with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            file.write(f"{_FIRST}\n# unit: {self.unit}\n# measured: {self.measured}\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*self.groups, "cost"])
            writer.writerows([*row, repr(cost)] for row, cost in zip(self.widths, self.costs, strict=True))
        return path

    @classmethod
    def read(cls, path: str | Path) -> "CostTable":
        """Read the file.

        Raises:
            BadFile: it is none, or a line makes no sense; the line is named.
        """
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        if not lines or lines[0].strip() != _FIRST:
            raise BadFile(f"{path}: the first line must be {_FIRST!r}")
        about = dict(line[1:].strip().split(":", 1) for line in lines if line.startswith("#") and ":" in line)
        body = [(k, line) for k, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
        if not body:
            raise BadFile(f"{path}: no line of names; write the names of the groups and 'cost', separated by commas")
        rows = [(k, next(csv.reader([line]))) for k, line in body]
        names = [name.strip() for name in rows[0][1]]
        if len(names) < 2 or names[-1] != "cost" or len(set(names)) < len(names):
            raise BadFile(f"{path}, line {rows[0][0]}: names must differ and end in 'cost', but are {names}")
        found = [_row(path, k, row, len(names)) for k, row in rows[1:]]
        return cls(
            groups=tuple(names[:-1]),
            widths=tuple(widths for widths, _ in found),
            costs=tuple(cost for _, cost in found),
            unit=about.get("unit", "").strip(),
            measured=about.get("measured", "").strip(),
        )


def _row(path: str | Path, line: int, row: Sequence[str], length: int) -> tuple[tuple[int, ...], float]:
    try:
        widths, cost = tuple(int(cell) for cell in row[:-1]), float(row[-1])
    except ValueError as error:
        raise BadFile(f"{path}, line {line}: {error}; widths are whole numbers, the cost is one number") from error
    if len(row) != length or min(widths, default=0) < 0 or not (math.isfinite(cost) and cost > 0):
        raise BadFile(f"{path}, line {line}: {length} numbers are expected, widths 0 or more and a cost above 0: {row}")
    return widths, cost
