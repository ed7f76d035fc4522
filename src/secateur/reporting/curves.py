"""Sensitivity curves as a table: a row for each layer, a column for each sparsity."""

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.sensitivity import Sensitivity

__all__ = ["points_of"]


def points_of(found: "Sensitivity") -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Headings, and for each layer its name and its scores; empty where a sparsity was not measured on a layer."""
    # Small layers cannot reach every sparsity exactly, so points are put into columns by place, not by value.
    places = range(max((len(points) for points in found.curves.values()), default=0))
    columns = [[points[place][0] for points in found.curves.values() if place < len(points)] for place in places]
    rows = []
    for name, points in found.curves.items():
        scores = [f"{score:.4f}" for _, score in points]
        rows.append((name, scores + [""] * (len(places) - len(scores))))
    return [f"{100 * median(column):.3g} %" for column in columns], rows
