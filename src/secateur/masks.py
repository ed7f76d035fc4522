"""Masks: which weights stay. ``True`` means kept, everywhere. Keys are parameter names of the original model."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import WrongModel

__all__ = ["Masks"]


class Masks(Mapping[str, Tensor]):
    """A read-only mapping from parameter name to a bool tensor of the parameter's shape; ``True`` = kept.

    >>> import torch
    >>> masks = Masks({"weight": torch.tensor([[True, False]])})
    >>> masks.sparsity, masks.kept, masks.total
    (0.5, 1, 2)
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> masks.apply_(layer).weight[0, 1].item()
    0.0
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._tensors = dict(tensors or {})
        for name, mask in self._tensors.items():
            if mask.dtype != torch.bool:
                raise WrongModel(f"the mask of {name!r} has dtype {mask.dtype}; masks are torch.bool, True = kept")

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.kept:,} of {self.total:,} weights kept, sparsity {self.sparsity:.4f})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(self[n].cpu(), other[n].cpu()) for n in self)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: "Masks") -> "Masks":
        """Keep what both keep; a parameter that only one names follows that one."""
        both = {n: self[n] & other[n].to(self[n].device) if n in other else self[n] for n in self}
        return Masks(both | {n: other[n] for n in other if n not in self})

    @property
    def total(self) -> int:
        """How many weights have a mask."""
        return sum(mask.numel() for mask in self.values())

    @property
    def kept(self) -> int:
        """How many weights stay."""
        return sum(int(mask.count_nonzero()) for mask in self.values())

    @property
    def sparsity(self) -> float:
        """The fraction removed over all masked parameters."""
        return 1 - self.kept / self.total if self.total else 0.0

    def sparsities(self) -> dict[str, float]:
        """The fraction removed for each parameter."""
        return {name: 1 - int(mask.count_nonzero()) / max(1, mask.numel()) for name, mask in self.items()}

    def check(self, model: nn.Module) -> None:
        """Refuse masks that do not belong to ``model``.

        Raises:
            WrongModel: a parameter is missing or has another shape.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in self.items():
            if name not in parameters:
                raise WrongModel(
                    f"the masks name {name!r}, which {type(model).__name__} does not have (it has {len(parameters)} parameters)"
                )
            if parameters[name].shape != mask.shape:
                raise WrongModel(f"{name!r} has shape {list(parameters[name].shape)} and its mask {list(mask.shape)}")

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> nn.Module:
        """Set every weight that is not kept to exactly zero, in place; NaN and infinite ones too.

        Raises:
            WrongModel: a parameter is missing or has another shape.
        """
        self.check(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in self.items():
            parameter = parameters[name]
            parameter.masked_fill_(~mask.to(parameter.device), 0)
        return model

    def to(self, device: torch.device | str) -> "Masks":
        """Return the masks on ``device``."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    @classmethod
    def of_zeros(cls, model: nn.Module, names: Any = None) -> "Masks":
        """Read masks off a model that is pruned already: what is exactly zero counts as removed."""
        chosen = {n: p for n, p in model.named_parameters() if names is None or n in names}
        return cls({n: p.detach() != 0 for n, p in chosen.items()})
