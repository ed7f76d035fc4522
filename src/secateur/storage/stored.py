"""Stored tensors: what the document says, held against what the container has, before anything is decoded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import BadFile, SecateurError
from secateur.names import build
from secateur.packing.decoding import Codec
from secateur.packing.document import DTYPES, Document, Entry, key_of
from secateur.packing.pack import codecs
from secateur.packing.rounding import restored
from secateur.storage.container import Container
from secateur.structure import Structure

__all__ = ["APART", "MASK_WORDS", "Stored", "mask_key", "stored_tensors"]

MASK_WORDS = ("nonzero", "all", "flips", "alone", "structure")
APART = ("flips", "alone")  # words of masks that are stored themselves


def mask_key(name: str) -> str:
    """Under which name the mask of ``name`` is stored, where it is."""
    return f"{name}:mask"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor of a file. ``keys`` says under which key each part lies."""

    name: str
    entry: Entry
    codec: Codec
    keys: Mapping[str, str]
    scales: str | None
    file: Container

    @property
    def nbytes(self) -> int:
        """Bytes of its parts in the file."""
        keys = [*self.keys.values(), *([self.scales] if self.scales else [])]
        return sum(self.file.part_nbytes(key) for key in keys)

    @property
    def exact(self) -> bool:
        """Whether the values in the file are those of the tensor."""
        return self.scales is None and self._value_dtype in (None, self.entry.dtype)

    def check(self) -> None:
        """Raise ``BadFile`` where the parts contradict each other or the shape; nothing large is allocated."""
        try:
            self.codec.check(self._parts(), self.entry.shape)
        except BadFile as error:
            raise BadFile(f"{self.name!r}, stored as {self.entry.format}: {error}") from None
        self._check_scales()

    def fill_(self, out: Tensor) -> None:
        """Write the tensor into ``out``, which has its shape; after `check`."""
        if self.exact and out.is_contiguous() and out.device.type == "cpu" and out.dtype == DTYPES[self.entry.dtype]:
            self.codec.fill_(out, self._parts())
        else:
            out.copy_(self.tensor())

    def tensor(self) -> Tensor:
        """The tensor; after `check`."""
        dtype = DTYPES[self._value_dtype or self.entry.dtype]
        values = torch.empty(self.entry.shape, dtype=dtype)
        self.codec.fill_(values, self._parts())
        scales = self.file[self.scales] if self.scales else None
        return values if self.exact else restored(values, scales, DTYPES[self.entry.dtype])

    def _parts(self) -> dict[str, Tensor]:
        return {part: self.file[key] for part, key in self.keys.items()}

    @property
    def _value_dtype(self) -> str | None:
        key = self.keys.get("values", self.keys.get("data"))
        return self.file.dtypes[key] if key else None

    def check_types(self) -> None:
        """Raise ``BadFile`` where the values cannot become the tensor that is promised."""
        found, promised = self._value_dtype, self.entry.dtype
        floats = DTYPES[promised].is_floating_point
        fine = {
            "missing": promised == "BOOL",
            "scaled": found == "I8" and floats and bool(self.entry.shape),
            "plain": found == promised or (found in ("F16", "BF16") and floats),
        }["scaled" if self.scales else "plain" if found else "missing"]
        if not fine or (found == "BOOL" and "values" in self.keys):
            raise BadFile(f"{self.name!r} has values of type {found}, which do not make a tensor of {promised}")

    def _check_scales(self) -> None:
        if self.scales is None:
            return
        scales = self.file[self.scales]
        if scales.dtype != torch.float32 or tuple(scales.shape) != self.entry.shape[:1]:
            raise BadFile(f"the scales of {self.name!r} are {scales.dtype} of shape {list(scales.shape)}")
        if not bool((torch.isfinite(scales) & (scales > 0)).all()):
            raise BadFile(f"the scales of {self.name!r} are not all positive numbers")


def stored_tensors(file: Container) -> dict[str, Stored]:
    """Every tensor of the file by name, masks apart under their own names; only headers are looked at.

    Raises:
        BadFile: a part is missing, belongs to nothing, or has a type that cannot be; a tie leads nowhere.
    """
    document = file.document
    if document is None:
        return {key: _plain(file, key, key) for key in file.shapes}
    found = {name: _listed(file, name, entry) for name, entry in document.tensors.items()}
    used = [key for one in found.values() for key in (*one.keys.values(), *([one.scales] if one.scales else []))]
    for key in sorted(file.shapes.keys() - set(used)):
        if ":" in key:
            raise BadFile(f"{key!r} is a part of no tensor")
        found[key] = _plain(file, key, key)
    _check_links(document, found)
    return found


def _plain(file: Container, name: str, key: str) -> Stored:
    entry = Entry(format="dense", dtype=file.dtypes[key], shape=file.shapes[key])
    return Stored(name=name, entry=entry, codec=codecs()["dense"](), keys={"data": key}, scales=None, file=file)


def _listed(file: Container, name: str, entry: Entry) -> Stored:
    if entry.format not in codecs():  # never imported: the name comes from the file
        raise BadFile(f"{name!r} is stored as {entry.format!r}; this Secateur reads {', '.join(codecs())}")
    try:
        codec: Codec = build(codecs()[entry.format], entry.options, f"format {entry.format!r}")
    except SecateurError as error:
        raise BadFile(f"{name!r}: {error}") from None
    keys = {part: key_of(name, part) for part in codec.parts}
    missing = [key for part, key in keys.items() if key not in file.shapes and part != "values"]
    if missing:
        raise BadFile(f"{name!r} is stored as {entry.format}, but the file lacks {', '.join(map(repr, missing))}")
    scales = key_of(name, "scales") if entry.scaled else None
    if scales is not None and scales not in file.shapes:
        raise BadFile(f"{name!r} is scaled, but the file lacks {scales!r}")
    present = {part: key for part, key in keys.items() if key in file.shapes}
    stored = Stored(name=name, entry=entry, codec=codec, keys=present, scales=scales, file=file)
    stored.check_types()
    return stored


def _check_links(document: Document, found: Mapping[str, Stored]) -> None:
    if document.structure is not None:
        Structure.from_dict(document.structure)
    for alias, name in document.tied.items():
        if alias in found or name not in found:
            raise BadFile(f"{alias!r} is tied to {name!r}: the first must not be stored itself, the second must be")
    for line in _wrong_masks(document, found):
        raise BadFile(line)


def _wrong_masks(document: Document, found: Mapping[str, Stored]) -> Iterator[str]:
    for name, word in document.masks.items():
        target, mask = found.get(document.tied.get(name, name)), found.get(mask_key(name))
        if word not in MASK_WORDS:
            yield f"the mask of {name!r} is {word!r}; there are {', '.join(MASK_WORDS)}"
        elif word == "structure" and name not in (document.structure or {}).get("shapes", ()):
            yield f"the mask of {name!r} follows from the structure, which does not mention it"
        elif word != "alone" and target is None:
            yield f"the mask of {name!r} needs that tensor, which the file lacks"
        elif word in APART and (mask is None or mask.entry.dtype != "BOOL"):
            yield f"the mask of {name!r} should be stored as bools under {mask_key(name)!r}"
        elif word == "flips" and mask and target and mask.entry.shape != target.entry.shape:
            yield f"the mask of {name!r} has shape {list(mask.entry.shape)}, the tensor {list(target.entry.shape)}"
