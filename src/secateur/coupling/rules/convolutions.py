"""Convolutions: plain, transposed, grouped, depthwise."""

from typing import Any

import torch
from torch import Tensor

from secateur.coupling.dyeing import RULES, Dye, rule
from secateur.coupling.layering import axes, spread
from secateur.coupling.rules.contractions import contract, made


@rule("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "mkldnn_convolution", "convolution_overrideable")
def _(
    dye: Dye,
    out: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: Any,
    output_padding: Any,
    groups: Any,
    *args: Any,
) -> Any:
    w_out, w_in = (1, 0) if transposed else (0, 1)
    for d in range(2, weight.dim()):
        for layer in dye.on(weight, d):
            dye.freeze(layer, "is a kernel position")
    for layer in dye.of(x):
        if set(axes(layer)) - {0, 1} and 1 not in axes(layer):  # otherwise `along` ties what shares a channel
            dye.freeze(layer, "varies in space")
    inputs = [dye.along(la, 1) for la in dye.on(x, 1)]
    rows = [dye.along(la, w_out) for la in dye.on(weight, w_out)]
    columns = [dye.along(la, w_in) for la in dye.on(weight, w_in)]
    if groups == 1:
        contract(dye, inputs, columns)
    elif transposed:
        rows = _transposed_groups(dye, inputs, rows, columns, groups, out.shape[1])
    elif _whole(dye, x, [*inputs, *rows], groups):
        rows = _whole_groups(dye, inputs, rows, columns, groups)
    else:
        rows = _inside_groups(dye, inputs, rows, columns, groups)
    rows = made(dye, rows, bias)
    first = (slice(None), slice(0, 1)) + (slice(0, 1),) * (x.dim() - 2)
    passed = [layer[first].expand(out.shape) for layer in dye.of(x) if axes(layer) == (0,)]
    return (*[spread(r, out.shape, 1) for r in rows], *passed)


@rule("torchvision::deform_conv2d")
def _(dye: Dye, out: Any, x: Any, weight: Any, offset: Any, mask: Any, bias: Any, *args: Any) -> Any:
    """A convolution that reads beside its place: where is said by offsets, for groups of channels."""
    for steering in (offset, mask):
        for layer in dye.of(steering):
            dye.freeze(layer, "steers a resampling")
    groups, steered = args[6], args[7]
    for layer in dye.on(x, 1) if steered > 1 else ():
        parts = dye.along(layer, 1).view(steered, -1)
        dye.tie(parts, parts[:1].expand_as(parts))
    plain = RULES["convolution"]
    return plain(dye, out, x, weight, bias, None, None, None, False, None, groups)


Colours = list[Tensor]  # one-dimensional each


def _whole(dye: Dye, x: Tensor, sides: Colours, groups: int) -> bool:
    """Whether groups leave whole. A weight for every image of a batch makes groups of the same channels, which leave from all."""
    alike = all(torch.equal(t, t[:1].expand_as(t)) for t in (side.view(groups, -1) for side in sides))
    return (dye.whole or x.shape[1] == groups) and not (sides and alike)  # depthwise is the case of groups of one


def _whole_groups(dye: Dye, inputs: Colours, rows: Colours, columns: Colours, groups: int) -> Colours:
    """A group leaves with all its inputs and outputs."""
    for c in columns:
        dye.freeze(c, "is a position inside a convolution group")
    for side in (*inputs, *rows):
        table = side.view(groups, -1)
        if table.shape[1] > 1:
            dye.tie(table, table[:, :1].expand_as(table))
            dye.heads.append((side, "convolution group"))
    contract(dye, [c.view(groups, -1)[:, 0] for c in inputs], [r.view(groups, -1)[:, 0] for r in rows])
    return rows


def _inside_groups(dye: Dye, inputs: Colours, rows: Colours, columns: Colours, groups: int) -> Colours:
    """The same positions leave every group."""
    for side in (*inputs, *rows):
        table = side.view(groups, -1)
        dye.tie(table, table[:1].expand_as(table))
    contract(dye, [c.view(groups, -1)[0] for c in inputs], columns)
    return rows


def _transposed_groups(
    dye: Dye, inputs: Colours, rows: Colours, columns: Colours, groups: int, outputs: int
) -> Colours:
    """Stored ``[in, out / groups]``: groups leave whole, and an output's colour is that of its group."""
    for r in rows:
        dye.freeze(r, "is a position inside a convolution group")
    contract(dye, inputs, columns)
    for c in columns:
        table = c.view(groups, -1)
        dye.tie(table, table[:, :1].expand_as(table))
    return [c.view(groups, -1)[:, :1].expand(groups, outputs // groups).reshape(-1) for c in columns[:1]]
