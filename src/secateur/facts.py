"""Where a weight tensor keeps its output and input channels, so that one pattern fits every layer type."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["LayerFacts"]


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """How one parameter is laid out.

    The *canonical* form of a weight is ``[out, in, taps]``: output channels, input channels of one group, and every
    kernel position. A linear layer has one tap; a vector (a bias) has one input and one tap.

    Args:
        module: path of the module that holds the parameter ("" for the model itself).
        kind: what the layer is: "linear", "conv", "embedding", "recurrent", "attention", "vector", "other".
        out_dim: the dimension of the tensor that holds output channels.
        in_dim: the dimension that holds input channels, or ``None`` where there is none.
        groups: convolution groups.
        out_in_groups: the tensor is stored as ``[in, out / groups, ...]`` (transposed convolution).
    """

    module: str = ""
    kind: str = "other"
    out_dim: int = 0
    in_dim: int | None = 1
    groups: int = 1
    out_in_groups: bool = False

    def canonical(self, weight: Tensor) -> Tensor:
        """Return ``weight`` as ``[out, in, taps]``; a view where strides allow.

        >>> import torch
        >>> LayerFacts(out_dim=1, in_dim=0).canonical(torch.zeros(8, 6, 3, 3)).shape
        torch.Size([6, 8, 9])
        >>> LayerFacts(out_dim=1, in_dim=0, groups=2, out_in_groups=True).canonical(torch.zeros(8, 6, 3, 3)).shape
        torch.Size([12, 4, 9])
        """
        if weight.dim() < 2:
            return weight.reshape(-1, 1, 1)
        if self.in_dim is None:
            return weight.unsqueeze(1).flatten(2)
        if self.out_in_groups and self.groups > 1:  # [in, out/g, ...] -> [g, in/g, out/g, ...] -> [g*out/g, in/g, ...]
            split = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
            return split.flatten(0, 1).flatten(2) if weight.dim() > 2 else split.flatten(0, 1).unsqueeze(-1)
        moved = weight.movedim((self.out_dim, self.in_dim), (0, 1))
        return moved.flatten(2) if weight.dim() > 2 else moved.unsqueeze(-1)

    def original(self, canonical: Tensor, like: Tensor) -> Tensor:
        """Undo `canonical`: lay ``[out, in, taps]`` out as ``like`` is."""
        if like.dim() < 2 or self.in_dim is None:
            return canonical.reshape(like.shape)
        if self.out_in_groups and self.groups > 1:
            return canonical.reshape(self.groups, -1, *canonical.shape[1:]).transpose(1, 2).reshape(like.shape)
        taps = [size for dim, size in enumerate(like.shape) if dim not in (self.out_dim, self.in_dim)]
        moved = canonical.reshape(*canonical.shape[:2], *taps)
        return moved.movedim((0, 1), (self.out_dim, self.in_dim)).reshape(like.shape)
