"""Sensitivity curves as a table: a row for each layer, a column for each sparsity."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.sensitivity import Sensitivity

__all__ = ["points_of"]


def points_of(found: "Sensitivity") -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Headings, and for each layer its name and its scores; empty where a sparsity was not measured on a layer."""
    reached = sorted({round(sparsity, 3) for points in found.curves.values() for sparsity, _ in points})
    rows = []
    for name, points in found.curves.items():
        values = {round(sparsity, 3): f"{score:.4f}" for sparsity, score in points}
        rows.append((name, [values.get(sparsity, "") for sparsity in reached]))
    return [f"{100 * sparsity:g} %" for sparsity in reached], rows
