"""Inspect: what a file holds, from its header alone. No tensor is read, no class is needed."""

import os
from dataclasses import dataclass, field
from math import prod
from typing import Any

from secateur.columns import expand
from secateur.errors import BadFile
from secateur.storage.container import Container, opened
from secateur.storage.stored import APART, Stored, mask_key, stored_tensors
from secateur.structure import Structure

__all__ = ["File", "StoredTensor", "inspect", "is_ours"]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """How one tensor is stored.

    Args:
        name, shape, dtype: of the tensor that comes back; types in safetensors' words (F32, BF16, ...).
        format: "dense", "bitmask", "gap", "csr", "n_of_m", "block"; ``options`` say which kind.
        stored_dtype: the type of the values in the file; narrower than ``dtype`` after ``save(dtype=...)``.
        nbytes: bytes of its parts; ``dense_nbytes``: bytes of the tensor that comes back.
        density: the fraction of the weights that is written down, or ``None`` for bools, where positions say everything.
    """

    name: str
    format: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    dense_nbytes: int
    density: float | None
    stored_dtype: str
    options: dict[str, int] = field(default_factory=dict)

    @property
    def numel(self) -> int:
        """How many weights the tensor has."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class File:
    """What a model file holds.

    Args:
        path, nbytes: the file and its size, header included.
        ours: whether Secateur wrote it; a plain safetensors file can be inspected too.
        version: of the file format; 0 for a plain file.
        model: the class that the weights come from.
        tensors: in the order of their names.
        masks: the stored masks, by the name of their parameter.
        tied: names that share another tensor.
        masked: the parameters that have a mask.
        report: the receipt as plain values, if there is one.
        narrowed: whether channels have left, so that shapes differ from those of the class.
        original: the shapes that narrowed tensors have in the class.
    """

    path: str
    nbytes: int
    ours: bool
    version: int = 0
    model: str = ""
    tensors: tuple[StoredTensor, ...] = ()
    masks: tuple[StoredTensor, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)
    masked: tuple[str, ...] = ()
    report: dict[str, Any] | None = None
    narrowed: bool = False
    original: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of all the tensors that come back, without a header."""
        return sum(tensor.dense_nbytes for tensor in self.tensors)


def inspect(path: str | os.PathLike[str]) -> File:
    """Describe a file of Secateur's, or a plain safetensors file.

    Raises:
        BadFile: it is damaged. Only the header is looked at, so damage in the data shows when it is loaded.
        OSError: it cannot be opened.
    """
    with opened(path) as file:
        found = stored_tensors(file)
        return _describe(file, found)


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether Secateur wrote this file; ``False`` for anything that cannot be read."""
    try:
        with opened(path) as file:
            return file.document is not None
    except (BadFile, OSError):
        return False


def _describe(file: Container, found: dict[str, Stored]) -> File:
    document = file.document
    if document is None:
        described = tuple(_tensor(found[name]) for name in sorted(found))
        return File(path=str(file.path), nbytes=file.nbytes, ours=False, tensors=described)
    apart = {mask_key(name) for name, word in document.masks.items() if word in APART}
    return File(
        path=str(file.path),
        nbytes=file.nbytes,
        ours=True,
        version=document.version,
        model=document.model,
        tensors=tuple(_tensor(found[name]) for name in sorted(found.keys() - apart)),
        masks=tuple(_tensor(found[name]) for name in sorted(apart)),
        tied=document.tied,
        masked=tuple(document.masks),
        report=expand(document.report),
        narrowed=document.structure is not None,
        original={} if document.structure is None else dict(Structure.from_dict(document.structure).shapes),
    )


def _tensor(stored: Stored) -> StoredTensor:
    entry, key = stored.entry, stored.keys.get("values", stored.keys.get("data"))
    written = prod(stored.file.shapes[key]) if key else None
    return StoredTensor(
        name=stored.name,
        format=entry.format,
        dtype=entry.dtype,
        shape=entry.shape,
        nbytes=stored.nbytes,
        dense_nbytes=entry.nbytes,
        density=None if written is None else written / max(1, prod(entry.shape)),
        stored_dtype=stored.file.dtypes[key] if key else entry.dtype,
        options=dict(entry.options),
    )
