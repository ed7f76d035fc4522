"""Stub, replaced next: a receipt as a table."""

from secateur.report import Report

__all__ = ["render_text"]


def render_text(report: Report) -> str:
    """Render the receipt."""
    return f"{report.method}: {report.before.nonzeros} -> {report.after.nonzeros}"
