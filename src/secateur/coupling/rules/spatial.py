"""Operations over trailing spatial axes: pooling, resizing, padding by reflection. Leading axes pass through."""

from typing import Any

from torch import Tensor

from secateur.coupling.dyeing import Dye, rule
from secateur.coupling.layering import axes, fit
from secateur.coupling.rules.holds import hold
from secateur.coupling.rules.pointwise import pointwise

_SPATIAL = {
    1: """max_pool1d avg_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d reflection_pad1d replication_pad1d
 max_pool1d_with_indices adaptive_max_pool1d _upsample_nearest_exact1d""",
    2: """max_pool2d_with_indices max_pool2d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d mkldnn_max_pool2d
upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d
replication_pad2d _upsample_nearest_exact2d grid_sampler_2d fractional_max_pool2d affine_grid_generator""",
    3: """max_pool3d_with_indices max_pool3d avg_pool3d adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d
upsample_trilinear3d reflection_pad3d replication_pad3d grid_sampler_3d""",
}


def over_trailing(dye: Dye, out: Tensor, x: Tensor, count: int) -> tuple[Tensor, ...]:
    """Carry layers of the leading axes; layers that vary in space may not leave."""
    layers = []
    for layer in dye.of(x):
        fitted = fit(layer, out.shape, range(x.dim() - count))
        if fitted is None:
            dye.freeze(layer, "varies in space")
        else:
            layers.append(fitted)
    return tuple(layers)


def _register(count: int) -> None:
    @rule(*_SPATIAL[count].split())
    def _(dye: Dye, out: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        first = out[0] if isinstance(out, tuple | list) else out
        layers = over_trailing(dye, first, x, count)
        for a in (*args, *kwargs.values()):
            if isinstance(a, Tensor):
                for layer in dye.of(a):
                    dye.freeze(layer, "steers a resampling")
        return [layers] * len(out) if isinstance(out, tuple | list) else layers


for _count in _SPATIAL:
    _register(_count)


@rule("max_unpool2d", "max_unpool3d")
def _(dye: Dye, out: Any, x: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
    dye.put(x, pointwise(dye, x, x, indices))
    return over_trailing(dye, out, x, 2 if dye.operation == "max_unpool2d" else 3)


@rule("unfold_backward")
def _(dye: Dye, out: Any, pieces: Any, sizes: Any, dim: Any, *args: Any) -> Any:
    """Overlapping pieces are added up along ``dim``: the inverse of a short-time Fourier transform."""
    layers = []
    for layer in dye.of(pieces):
        kept = hold(dye, layer, {dim % len(sizes), pieces.dim() - 1}, "is added up in pieces")
        if kept is not None:
            layers.append(kept[..., 0].narrow(dim, 0, 1).expand(out.shape))
    return tuple(layers)


@rule("im2col")
def _(dye: Dye, out: Any, x: Any, kernel: Any, *args: Any, **kwargs: Any) -> Any:
    taps = kernel[0] * kernel[1]
    layers = []
    for layer in dye.of(x):
        if set(axes(layer)) - {0, 1}:
            dye.freeze(layer, "varies in space")
            continue
        small = layer[..., :1, 0]
        layers.append(small.repeat_interleave(taps, 1).expand(out.shape))
    return tuple(layers)


@rule("col2im")
def _(dye: Dye, out: Any, x: Any, size: Any, kernel: Any, *args: Any, **kwargs: Any) -> Any:
    taps = kernel[0] * kernel[1]
    layers = []
    for layer in dye.of(x):
        if set(axes(layer)) - {0, 1}:
            dye.freeze(layer, "varies in space")
            continue
        small = layer[..., 0].reshape(layer.shape[0], -1, taps)
        dye.tie(small, small[..., :1].expand_as(small))
        layers.append(small[..., 0][..., None, None].expand(out.shape))
    return tuple(layers)


@rule("roi_align", "torchvision::roi_align", "torchvision::roi_pool", "torchvision::ps_roi_align")
def _(dye: Dye, out: Any, x: Any, boxes: Any, *args: Any, **kwargs: Any) -> Any:
    for layer in dye.of(boxes):
        dye.freeze(layer, "is a coordinate")
    first = out[0] if isinstance(out, tuple | list) else out
    layers = []
    for layer in dye.of(x):
        if axes(layer) != (1,):
            dye.freeze(layer, "varies in space")
            continue
        layers.append(layer[:1, :, :1, :1].expand(first.shape))
    return [tuple(layers)] + [()] * (len(out) - 1) if isinstance(out, tuple | list) else tuple(layers)


@rule(
    "torchvision::nms",
    "bucketize",
    "embedding_renorm",
    "put",
    "select_scatter",
    "slice_scatter",
    "unique_consecutive",
    "_unique2",
    "unique",
    "one_hot",
    "slow_conv",
    "cdist",
    "_cdist_forward",
    "_euclidean_dist",
    "linalg_inv_ex",
    "_linalg_svd",
    "linalg_cross",
    "_linalg_det",
    "inverse",
    "equal",
    "isin",
    "tril_indices",
    "triu_indices",
    "random",
    "uniform",
    "exponential",
    "_assert_async",
    "_assert_tensor_metadata",
)
def _(dye: Dye, out: Any, *args: Any, **kwargs: Any) -> Any:
    for a in (*args, *kwargs.values()):
        for t in a if isinstance(a, tuple | list) else [a]:
            for layer in dye.of(t):
                dye.freeze(layer, "is mixed in a way that fixes its size")
    return ()
