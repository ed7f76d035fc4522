"""Structure: how a narrowed network differs from its original class, as data that fits in a file header.

Applied to a fresh instance of the original class it gives the narrowed one, so no class and no pickle need be stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateur.errors import BadFile

__all__ = ["Captured", "Structure"]


@dataclass(frozen=True, kw_only=True)
class Captured:
    """How a model was captured as a graph, where its own class cannot be narrowed.

    Args:
        inputs: name ("" for a positional one), shape and type of each example input.
        digest: of the graph's nodes.
    """

    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    digest: str

    @classmethod
    def from_list(cls, data: Any) -> "Captured":
        """Read what a structure holds; types are names of torch's own."""
        inputs = tuple((str(name), tuple(_size(s) for s in shape), _dtype(kind)) for name, shape, kind in data[0])
        return cls(inputs=inputs, digest=str(data[1]))


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What stays of each tensor, and the sizes that followed.

    Args:
        shapes: original shape of every tensor that shrank, by parameter or buffer name.
        kept: tensor name to dimension to the indices that stay, ascending.
        sizes: ``(module path, attribute)`` to its new value; ``"split.1"`` is the second entry of a list attribute.
        graph: how the model was captured first, if what was narrowed is a graph of it.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    kept: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    sizes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    graph: Captured | None = None

    def mask(self, name: str) -> Tensor:
        """What stays of the original tensor ``name``, as a bool tensor; only for tensors that shrank."""
        mask = torch.ones(self.shapes[name], dtype=torch.bool)
        for dim, indices in self.kept[name].items():
            out = torch.ones(mask.shape[dim], dtype=torch.bool)
            out[list(indices)] = False
            mask.index_fill_(dim, out.nonzero().squeeze(1), False)
        return mask

    def then(self, other: "Structure") -> "Structure":
        """What comes of narrowing once more: ``other`` was made for the network that this structure gives.

        >>> first = Structure(shapes={"w": (6,)}, kept={"w": {0: (0, 2, 3, 5)}})
        >>> first.then(Structure(shapes={"w": (4,)}, kept={"w": {0: (1, 3)}})).kept
        {'w': {0: (2, 5)}}
        """
        kept = {name: dict(dims) for name, dims in self.kept.items()}
        for name, dims in other.kept.items():
            own = kept.setdefault(name, {})
            for dim, indices in dims.items():
                own[dim] = tuple(own[dim][index] for index in indices) if dim in own else indices
        return Structure(
            shapes={**other.shapes, **self.shapes},
            kept=kept,
            sizes={**self.sizes, **other.sizes},
            graph=self.graph,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: indices as one hexadecimal bit string per dimension."""
        kept = {
            name: {str(dim): _to_bits(indices, self.shapes[name][dim]) for dim, indices in dims.items()}
            for name, dims in self.kept.items()
        }
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        sizes = [[path, attribute, size] for (path, attribute), size in self.sizes.items()]
        said = {"shapes": shapes, "kept": kept, "sizes": sizes}
        return said if self.graph is None else said | {"graph": [list(self.graph.inputs), self.graph.digest]}

    @classmethod
    def from_dict(cls, data: Any) -> "Structure":
        """Read what `to_dict` wrote.

        Raises:
            BadFile: it is not of that form, or indices lie outside their dimension.
        """
        try:
            shapes = {str(n): tuple(_size(s) for s in shape) for n, shape in data["shapes"].items()}
            kept = {
                str(name): {int(dim): _from_bits(bits, shapes[name][int(dim)]) for dim, bits in dims.items()}
                for name, dims in data["kept"].items()
            }
            sizes = {(str(path), str(attribute)): _size(size) for path, attribute, size in data["sizes"]}
            graph = Captured.from_list(data["graph"]) if "graph" in data else None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BadFile(f"the structure section is damaged ({type(error).__name__}: {error})") from error
        return cls(shapes=shapes, kept=kept, sizes=sizes, graph=graph)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 40:
        raise ValueError(f"{value!r} is not a size")
    return value


def _dtype(name: Any) -> str:
    if not isinstance(getattr(torch, str(name), None), torch.dtype):
        raise ValueError(f"{name!r} is not a type of tensor")
    return str(name)


def _to_bits(indices: tuple[int, ...], size: int) -> str:
    bits = bytearray((size + 7) // 8)
    for index in indices:
        bits[index // 8] |= 1 << (index % 8)
    return bits.hex()


def _from_bits(text: str, size: int) -> tuple[int, ...]:
    bits = bytes.fromhex(text)
    if len(bits) != (size + 7) // 8 or (size % 8 and bits[-1] >> (size % 8)):
        raise ValueError(f"{len(bits)} bytes of indices for a dimension of {size}")
    kept = tuple(8 * place + bit for place, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1)
    if not kept:
        raise ValueError("a dimension keeps nothing")
    return kept
