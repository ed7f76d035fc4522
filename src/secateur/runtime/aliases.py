"""Which operations give the same tensor again, a copy of it, or a view: that matters to code that writes in place."""

import torch
from torch import fx

__all__ = ["COPIES", "FILLED", "SAME", "VIEWS", "as_written", "in_place"]

SAME = frozenset(
    [
        "dropout",
        "dropout_",
        "feature_dropout",
        "alpha_dropout",
        "contiguous",
        "clone",
        "detach",
        "alias",
        "lift_fresh_copy",
        "_assert_tensor_metadata",
    ]
)
COPIES = frozenset(["clone", "lift_fresh_copy"])  # another tensor, for code that writes in place
VIEWS = frozenset(
    [
        "view",
        "reshape",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "expand",
        "flatten",
        "unflatten",
        "t",
        "chunk",
        "split",
        "split_with_sizes",
        "unbind",
        "narrow",
        "view_as",
        "alias",
        "detach",
    ]
)
FILLED = frozenset(
    ["zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"]
)  # no matter what the tensor holds


def in_place(name: str) -> bool:
    """Whether an operation writes to its first input."""
    return name.endswith("_") and not name.startswith("_")


def as_written(node: fx.Node, name: str, dtype: torch.dtype) -> str:
    """The name of an operation; "clone" or "alias" for one that copies only where it has to."""
    given = node.args[0]
    if name == "contiguous" and isinstance(given, fx.Node):
        return "alias" if given.meta["val"].is_contiguous() else "clone"
    if name == "to" and node.meta["val"].dtype == dtype and True not in node.args[1:] and not node.kwargs.get("copy"):
        return "alias"
    return name
