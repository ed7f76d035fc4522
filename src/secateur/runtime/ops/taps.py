"""The geometry of convolutions: which pixel each tap reads, and how many zeros must lie around the planes for that."""

from dataclasses import dataclass

from secateur.runtime.emitting import Emitter
from secateur.runtime.graph import Node, Value
from secateur.runtime.ops.arguments import Unfit, arguments, pair, value
from secateur.runtime.planes import plane_shape

__all__ = ["Taps", "back_shifts", "is_depthwise", "prepare", "reach", "taps_of"]


@dataclass(frozen=True)
class Taps:
    """A convolution's geometry."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    above: int
    left: int
    dilation: tuple[int, int]
    groups: int
    transposed: bool

    def places(self) -> list[tuple[int, int, int]]:
        """For each tap: the phase that it reads, and how many rows and columns away."""
        found = []
        for ky in range(self.kernel[0]):
            for kx in range(self.kernel[1]):
                y, x = ky * self.dilation[0] - self.above, kx * self.dilation[1] - self.left
                (dy, py), (dx, px) = divmod(y, self.stride[0]), divmod(x, self.stride[1])
                found.append((py * self.stride[1] + px, dy, dx))
        return found


def taps_of(node: Node) -> Taps:
    """Read the arguments of a convolution.

    Raises:
        Unfit: a form that the engine has no steps for.
    """
    a = arguments(node)
    weight = value(a["weight"])
    dims = len(weight.shape) - 2
    kernel = pair(weight.shape[2:], dims)
    stride, dilation = _flat(pair(a["stride"], dims), dims), _flat(pair(a["dilation"], dims), dims)
    transposed = bool(a.get("transposed")) or "transpose" in node.name
    if a["padding"] == "same":
        above, left = (d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    elif a["padding"] == "valid":
        above = left = 0
    else:
        above, left = pair(a["padding"], dims)
        above = above if dims == 2 else 0
    if len(value(a["input"]).shape) != dims + 2:
        raise Unfit("a convolution without a batch")
    return Taps(kernel, stride, above, left, dilation, a["groups"], transposed)


def _flat(sizes: tuple[int, int], dims: int) -> tuple[int, int]:
    return sizes if dims == 2 else (1, sizes[1])


def prepare(e: Emitter, node: Node) -> None:
    """Before anything is placed: tie pitches, and ask for the zeros that the taps read."""
    x, out = value(node.args[0]), node.out
    taps = taps_of(node)
    if taps.transposed:
        e.planes.tie(x)
        x.asks(reach(x, node.out, back_shifts(taps)))
        e.planes.tie(out)
        return
    e.planes.tie(out)
    if taps.stride == (1, 1):
        e.planes.tie(x, out)
        x.asks(reach(x, out, [(dy, dx) for _, dy, dx in taps.places()]))
    elif is_depthwise(node, taps):
        e.planes.tie(x)
        x.asks(_around(x, out, taps))


def reach(x: Value, out: Value, shifts: list[tuple[int, int]]) -> tuple[int, int, int, int]:
    """Zeros that are read around ``x`` when output pixel (i, j) reads (i + dy, j + dx)."""
    _, _, height, width = plane_shape(x.shape)
    _, _, rows, columns = plane_shape(out.shape)
    dys, dxs = [dy for dy, _ in shifts], [dx for _, dx in shifts]
    below, right = rows - 1 + max(dys) - (height - 1), columns - 1 + max(dxs) - (width - 1)
    return (max(0, -min(dys)), max(0, below), max(0, -min(dxs)), max(0, right))


def _around(x: Value, out: Value, t: Taps) -> tuple[int, int, int, int]:
    _, _, height, width = plane_shape(x.shape)
    _, _, rows, columns = plane_shape(out.shape)
    below = (rows - 1) * t.stride[0] + (t.kernel[0] - 1) * t.dilation[0] - t.above - (height - 1)
    right = (columns - 1) * t.stride[1] + (t.kernel[1] - 1) * t.dilation[1] - t.left - (width - 1)
    return (t.above, max(0, below), t.left, max(0, right))


def is_depthwise(node: Node, taps: Taps) -> bool:
    """Whether every channel has a filter of its own, and the kernel for that fits: it has one stride, which a single row of outputs has, too."""
    x, weight = value(node.args[0]), value(node.args[1])
    single = plane_shape(node.out.shape)[2] == 1 and taps.stride[1] > 1
    alike = taps.stride[0] == taps.stride[1] or single
    return not taps.transposed and taps.groups == x.shape[1] == weight.shape[0] and taps.groups > 1 and alike


def back_shifts(t: Taps) -> list[tuple[int, int]]:
    """Of a transposed convolution: how far away the input pixels are that output pixels add up."""
    return [
        (dy, dx)
        for dy in _back(t.kernel[0], t.stride[0], t.above, t.dilation[0])
        for dx in _back(t.kernel[1], t.stride[1], t.left, t.dilation[1])
    ]


def _back(kernel: int, stride: int, padding: int, dilation: int) -> list[int]:
    return sorted(
        {
            (r + padding - k * dilation) // stride
            for r in range(stride)
            for k in range(kernel)
            if (r + padding - k * dilation) % stride == 0
        }
    )
