"""Bytes on disk: the plain safetensors file, and the same after gzip. Neither is written; nothing is copied.

The plain file is what ``safetensors.torch.save_model`` gives: eight bytes of length, a JSON header, then the tensors; tied
tensors once. gzip runs at its command line's level 6, tensor by tensor, so memory stays at one tensor.
"""

import json
import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["GZIP_LIMIT", "dense_nbytes", "gzip_nbytes", "stored_once"]

GZIP_LIMIT = 32 << 20  # bytes; gzip takes about two seconds for this much, so larger files are asked for explicitly
_PIECE = 1 << 22

_NAMES = {  # as safetensors spells them; in the order in which it sorts tensors
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}


def stored_once(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict, each tied one once, under its first name."""
    seen: dict[object, str] = {}
    for name, tensor in named.items():
        strided = tensor.layout == torch.strided and tensor.numel() and tensor.device.type != "meta"
        where = (
            (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
            if strided
            else name
        )
        seen.setdefault(where, name)
    return {name: named[name] for name in seen.values()}


def dense_nbytes(named: Mapping[str, Tensor]) -> int:
    """The size of the plain safetensors file in bytes.

    >>> dense_nbytes({"weight": torch.zeros(10, 10)})  # 8 bytes, 72 of header, 400 of weights
    480
    """
    once = stored_once(named)
    return len(_header(once)) + sum(tensor.numel() * tensor.element_size() for tensor in once.values())


def gzip_nbytes(named: Mapping[str, Tensor]) -> int:
    """The size of that file after ``gzip -6`` in bytes. Takes about a second for each 20 MB."""
    packer = zlib.compressobj(level=6, wbits=31)
    once = stored_once(named)
    size = len(packer.compress(_header(once)))
    for tensor in _in_file_order(once).values():
        size += sum(len(packer.compress(piece)) for piece in _pieces(tensor))
    return size + len(packer.flush())


def _header(named: Mapping[str, Tensor]) -> bytes:
    entries, start = {}, 0
    for name, tensor in _in_file_order(named).items():
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES.get(tensor.dtype, "U8"),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _in_file_order(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = sorted(named, key=lambda name: (_ORDER.get(named[name].dtype, len(_ORDER)), name))
    return {name: named[name] for name in names}


def _pieces(tensor: Tensor) -> Iterator[bytes]:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, raw.numel(), _PIECE):
        yield raw[start : start + _PIECE].numpy().tobytes()
