"""Packing: every tensor in the format that makes it smallest, and the exact size of the file that holds them.

`packed_nbytes` gives that size without packing: formats outline their parts on the meta device, in a few looks at the weights.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, final

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from secateur.errors import WrongModel
from secateur.formats.dense import Dense
from secateur.names import find, names_in
from secateur.packing.bits import count_nonzero
from secateur.packing.decoding import Codec
from secateur.packing.document import DTYPES, Document, Entry, dtype_name, key_of
from secateur.packing.rounding import restored, rounded

__all__ = ["METADATA_KEY", "Packed", "codecs", "dense_nbytes", "pack", "packed_nbytes", "unpack"]

METADATA_KEY = "secateur"
_LISTING = 200  # bytes: about what another part and its entry cost in the header


@final
@dataclass(frozen=True, kw_only=True)
class Packed:
    """Parts as they lie in the file, and the document that says what they are."""

    parts: Mapping[str, Tensor]
    document: Document = field(default_factory=Document)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the safetensors file."""
        return {METADATA_KEY: self.document.to_json()}

    @property
    def nbytes(self) -> int:
        """The exact size of the file, header included, in bytes."""
        return _file_nbytes(self.parts, self.metadata)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    codec: Codec
    values: Tensor  # what is encoded: the tensor, or its rounded values
    scales: Tensor | None
    outline: dict[str, Tensor]


def pack(named: Mapping[str, Tensor], *, dtype: str | None = None, model: str = "", threads: int = 0) -> Packed:
    """Store every tensor in its smallest format; tied tensors once.

    Args:
        named: name to tensor; nothing is changed.
        dtype: "fp16", "bf16" or "int8" to store values in fewer bits; ``None`` keeps them bit for bit.
        model: the class of the model, for people.
        threads: how many tensors are packed at once; 0 for torch's number of threads.

    Raises:
        WrongModel: a tensor cannot be stored, or does not fit ``dtype``.
    """

    def one(item: tuple[str, Tensor]) -> tuple[str, _Choice, Mapping[str, Tensor]]:
        choice = _choose(item[0], item[1], dtype)
        return item[0], choice, choice.codec.encode(choice.values) or {}

    return _assemble(named, one, model=model, threads=threads)


def packed_nbytes(
    named: Mapping[str, Tensor],
    *,
    dtype: str | None = None,
    model: str = "",
    structure: Mapping[str, Any] | None = None,
    threads: int = 0,
) -> int:
    """The exact size of the file that `secateur.save` writes for a model with this state, in bytes; nothing is packed.

    ``structure`` is what the header says of a narrowed model, see `Structure.to_dict`.

    Raises:
        WrongModel: see `pack`.

    >>> named = {"weight": torch.eye(100)}
    >>> packed_nbytes(named) == pack(named).nbytes, dense_nbytes(named)
    (True, 40080)
    """

    def one(item: tuple[str, Tensor]) -> tuple[str, _Choice, Mapping[str, Tensor]]:
        choice = _choose(item[0], item[1], dtype)
        return item[0], choice, choice.outline

    packed = _assemble(named, one, model=model, threads=threads)
    told = replace(packed.document, structure=None if structure is None else dict(structure))
    return replace(packed, document=told).nbytes


def dense_nbytes(named: Mapping[str, Tensor]) -> int:
    """The exact size of the plain safetensors file of these tensors, tied ones once, in bytes."""
    tied = _tied(named)
    return _file_nbytes({name: tensor for name, tensor in named.items() if name not in tied}, {})


def unpack(packed: Packed) -> dict[str, Tensor]:
    """The tensors again, tied names included."""
    found: dict[str, Tensor] = {}
    listed = packed.document.tensors
    for name, entry in listed.items():
        codec = codecs()[entry.format](**entry.options)
        parts = {p: packed.parts[key_of(name, p)] for p in codec.parts if key_of(name, p) in packed.parts}
        scales = packed.parts.get(key_of(name, "scales"))
        found[name] = restored(codec.decode(parts, entry.shape), scales, DTYPES[entry.dtype])
    found |= {key: part.clone() for key, part in packed.parts.items() if ":" not in key and key not in listed}
    return found | {alias: found[name] for alias, name in packed.document.tied.items()}


@lru_cache(maxsize=1)
def codecs() -> dict[str, Any]:
    """Every storage format by name."""
    return {name: find("formats", name) for name in names_in("formats")}


def _assemble(named: Mapping[str, Tensor], one: Any, *, model: str, threads: int) -> Packed:
    tied = _tied(named)
    todo = [(name, _checked(name, tensor)) for name, tensor in named.items() if name not in tied]
    with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
        done: Iterable[tuple[str, _Choice, Mapping[str, Tensor]]] = list(pool.map(one, todo))
    parts: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    for name, choice, stored in done:
        parts |= {key_of(name, part): tensor for part, tensor in stored.items()}
        parts |= {key_of(name, "scales"): choice.scales} if choice.scales is not None else {}
        entry = _entry(choice, named[name])
        if not (entry.format == "dense" and choice.values.dtype == named[name].dtype and ":" not in name):
            entries[name] = entry
    return Packed(parts=parts, document=Document(model=model, tensors=entries, tied=tied))


def _entry(choice: _Choice, tensor: Tensor) -> Entry:
    name = next(name for name, codec in codecs().items() if isinstance(choice.codec, codec))
    return Entry(
        format=name,
        dtype=dtype_name(tensor.dtype) or "",
        shape=tuple(tensor.shape),
        options=asdict(choice.codec),  # type: ignore[call-overload]
        scaled=choice.scales is not None,
    )


def _choose(name: str, tensor: Tensor, dtype: str | None) -> _Choice:
    """The format that takes the fewest bytes. None stores fewer values than are non-zero, so a full tensor is dense."""
    values, scales = rounded(tensor.detach(), dtype, name)
    best: Codec = Dense()
    outline = {"data": torch.empty(values.shape, dtype=values.dtype, device="meta")}
    limit, nonzeros = values.nbytes - _LISTING, count_nonzero(values)
    if nonzeros < values.numel():
        for codec in _candidates(tuple(values.shape)):
            found = codec.outline(values, nonzeros, limit)
            if found is not None:
                best, outline, limit = codec, found, sum(part.nbytes for part in found.values())
    return _Choice(codec=best, values=values, scales=scales, outline=outline)


def _candidates(shape: tuple[int, ...]) -> list[Codec]:
    found: list[Codec] = []
    for codec in codecs().values():
        found += codec.variants(shape) if hasattr(codec, "variants") else [codec()]
    return sorted(found, key=lambda codec: codec.passes)


def _checked(name: str, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_meta or dtype_name(tensor.dtype) is None:
        raise WrongModel(
            f"{name!r} is a tensor of {tensor.dtype} with layout {tensor.layout} on {tensor.device}, which cannot be stored; "
            f"make it a plain tensor of one of {', '.join(DTYPES)}"
        )
    return tensor


def _tied(named: Mapping[str, Tensor]) -> dict[str, str]:
    """Later names of a tensor to the first one."""
    first: dict[object, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in named.items():
        if tensor.numel() and not tensor.is_meta and tensor.layout == torch.strided:
            same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            if first.setdefault(same, name) != name:
                tied[name] = first[same]
    return tied


def _file_nbytes(parts: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """The size of a safetensors file: 8 bytes, the header as JSON padded to a multiple of 8, and the data."""
    order = _dtype_order()
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for key in sorted(parts, key=lambda key: (order[parts[key].dtype], key)):
        part = parts[key]
        offsets = [at, at + part.nbytes]
        header[key] = {"dtype": dtype_name(part.dtype), "shape": list(part.shape), "data_offsets": offsets}
        at += part.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + at


@lru_cache(maxsize=1)
def _dtype_order() -> dict[torch.dtype, int]:
    """Where the safetensors library puts each type: offsets, and so the header's length, depend on it."""
    data = to_safetensors({name: torch.empty(0, dtype=dtype) for name, dtype in DTYPES.items()})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {DTYPES[name]: place for place, name in enumerate(header)}
