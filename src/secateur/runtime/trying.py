"""What is tried before a model is believed to be one of rows that do not mind each other: programs of a few sizes are run one after the other.

A call of 11 rows is run as programs of 8, 2 and 1, or row by row. That is right where the first axis is a batch, and wrong where it is time, or where
code takes a mean over it. A session feeds tokens piece by piece, which is right where they see the past through its caches alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur.errors import UnknownOperation
from secateur.examples import Example, leaving_no_trace

__all__ = ["check_session", "growing", "size_of", "sized", "why_alone"]


def growing(example: Example, axis: int) -> list[bool]:
    """Which tensors have the size of the first along ``axis``: the others are the same for any size."""
    size = size_of(example, axis)
    return [t.dim() > axis and t.shape[axis] == size for t in _tensors(example)]


def sized(example: Example, size: int, axis: int) -> Example:
    """The example with ``size`` along ``axis``: repeated, or cut."""
    old = size_of(example, axis) or size
    return _changed(
        example, growing(example, axis), lambda t: torch.cat([t] * -(-size // old), axis).narrow(axis, 0, size)
    )


def size_of(example: Example, axis: int) -> int | None:
    """How long the first tensor that has this axis is along it."""
    return next((int(t.shape[axis]) for t in _tensors(example) if t.dim() > axis), None)


def _tensors(example: Example) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((example.args, example.kwargs)) if isinstance(leaf, Tensor)]


def _changed(example: Example, which: Sequence[bool], change: Callable[[Tensor], Tensor]) -> Example:
    turn = iter(which)
    return Example(*tree_map_only(Tensor, lambda t: change(t) if next(turn) else t, (example.args, example.kwargs)))


def why_alone(module: nn.Module, example: Example, rows: int = 2) -> str:
    """Why rows of the first axis cannot be run apart from each other; "" where ``rows`` together give what each of them gives."""
    try:
        which, each = growing(example, 0), [sized(example, 1, 0)]
        for _ in range(rows - 1):
            each.append(_changed(each[-1], which, _other))
        whole, *parts = (_run(module, e) for e in (_stacked(each, which), *each))
    except Exception as error:  # noqa: BLE001 - whatever the model says of it
        return f"it does not run on one row and on {'two' if rows == 2 else rows} ({type(error).__name__}: {str(error).strip()[:120]})"
    return "" if _joined(parts, whole, 0) else "what it gives for rows together is not what it gives for each of them"


def _stacked(each: Sequence[Example], which: Sequence[bool]) -> Example:
    """Examples of one row as one example."""
    columns = zip(*map(_tensors, each), strict=True)
    turn = iter([torch.cat(column) if grows else column[0] for column, grows in zip(columns, which, strict=True)])
    first = each[0]
    return Example(*tree_map_only(Tensor, lambda _: next(turn), (first.args, first.kwargs)))


def check_session(module: nn.Module, example: Example, session: Callable[..., Any]) -> None:
    """Feed tokens in two pieces and at once; the session's weights must not be rounded, which would hide what this looks for.

    Raises:
        UnknownOperation: that is not the same.
    """
    both, second = _more(example, growing(example, 1), 1)
    try:
        whole = _run(module, both)
    except Exception:  # noqa: BLE001 - a length that the model cannot have: there is nothing to compare with
        return
    parts = [tree_leaves(session(*e.args, **e.kwargs)) for e in (example, second)]
    if not _joined(parts, whole, 1, 1e-3):
        raise UnknownOperation(
            f"with cache=, tokens may see the ones before only through causal scaled_dot_product_attention (is_causal=True), whose keys and values "
            f"are kept; {type(module).__name__} gives something else when its tokens come in two pieces"
        )


def _more(example: Example, which: Sequence[bool], axis: int) -> tuple[Example, Example]:
    """The example with other numbers behind it along ``axis``, and these numbers alone."""
    both = _changed(example, which, lambda t: torch.cat([t, _other(t)], axis))
    return both, _changed(example, which, _other)


def _other(t: Tensor) -> Tensor:
    """Other numbers of the same kind; what may be a mask stays."""
    if t.is_floating_point():
        return 0.7 * t.flatten().flip(0).view_as(t) - 0.1
    if t.dtype is torch.bool or not t.numel() or (int(t.min()) >= 0 and int(t.max()) <= 1):
        return t
    flipped = t.flatten().flip(0).view_as(t)
    return torch.where(t > 0, t - 1, t) if torch.equal(flipped, t) else flipped


def _run(module: nn.Module, example: Example) -> list[Any]:
    with leaving_no_trace(module):
        return tree_leaves(module(*example.args, **example.kwargs))


def _joined(parts: list[list[Any]], whole: list[Any], axis: int, limit: float = 1e-4) -> bool:
    """Whether the parts, put together as the engine does it, are the whole."""
    if any(len(part) != len(whole) for part in parts):
        return False  # a list with an entry for each row
    for expected, first, *others in zip(whole, *parts, strict=True):
        if not isinstance(expected, Tensor):
            continue
        rest = {part.shape[:axis] + part.shape[axis + 1 :] for part in (first, *others)}
        found = torch.cat([first, *others], axis) if first.dim() > axis and len(rest) == 1 else first
        if found.shape != expected.shape:
            return False
        a, b = found.double(), expected.double()
        near = limit * float(b[b.isfinite()].abs().max() if bool(b.isfinite().any()) else 0) + 1e-6
        if not torch.allclose(a, b, rtol=0, atol=near, equal_nan=True):
            return False
    return True
