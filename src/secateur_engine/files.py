"""Compiled models as files: the layout of safetensors (8 bytes of length, a JSON header, the arrays), read by mapping it into memory.

The header's ``__metadata__`` has two entries, ``secateur_engine``, the programs as JSON, and ``crc32``, the checksum of them and of the
arrays: damage is found on loading. It is no signature. Arrays are views of the file. Nothing is
believed before it was checked, here and again by the engine, which refuses a program that would touch memory that is not its own.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur_engine.errors import BadFile
from secateur_engine.model import Model

__all__ = ["load", "read", "write"]

KEY = "secateur_engine"
CHECK = "crc32"  # of the programs and the arrays
VERSION = 2
_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "|i1", "U16": "<u2", "I32": "<i4"}
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}
_ALIGNMENT = 64
_LARGEST_HEADER = 1 << 28


def write(path: str | os.PathLike[str], programs: Mapping[str, Any], arrays: Sequence[NDArray[Any]]) -> None:
    """Write a file, or leave the old one: it is put in place when it is complete."""
    said = json.dumps({"version": VERSION, **programs}, separators=(",", ":"))
    header: dict[str, Any] = {"__metadata__": {KEY: said}}
    at, check = 0, zlib.crc32(said.encode())
    for k, array in enumerate(arrays):
        check = zlib.crc32(np.ascontiguousarray(array).data, check)
        header[str(k)] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
        gap = -at % _ALIGNMENT
        if gap and k + 1 < len(arrays):  # safetensors allows no gaps, so the filling is an array too
            header[f"gap{k}"] = {"dtype": "I8", "shape": [gap], "data_offsets": [at, at + gap]}
            at += gap
    header["__metadata__"][CHECK] = f"{check:08x}"
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    target = Path(path)
    handle, fresh = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for k, array in enumerate(arrays):
                file.write(np.ascontiguousarray(array).data)
                if k + 1 < len(arrays):
                    file.write(b"\0" * (-array.nbytes % _ALIGNMENT))
        Path(fresh).replace(target)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str], *, threads: int = 1, kernels: str = "") -> Model:
    """Map a compiled model into memory, ready to be called.

    Args:
        path: what `write` wrote.
        threads: how many work on one call.
        kernels: "avx512", "avx2" or "baseline"; the best that this CPU has, if it is left out.

    Raises:
        BadFile: it is damaged, truncated, hostile, or not a compiled model.
        OSError: it cannot be opened.
    """
    programs, arrays = read(path)
    try:
        return Model(programs, arrays, threads=threads, kernels=kernels).built()
    except (
        KeyError,
        TypeError,
        IndexError,
        ValueError,
        OverflowError,
        AttributeError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise BadFile(f"{str(path)!r} holds no program that can be run ({type(error).__name__}: {error})") from None


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """The programs and the arrays of a file, checked; the arrays are views of the mapped file."""
    where = Path(path)
    size = where.stat().st_size
    if size < 8:
        raise BadFile(f"{str(where)!r} is too short to be a compiled model")
    whole: NDArray[Any] = np.memmap(where, dtype=np.uint8, mode="r")
    length = int.from_bytes(bytes(whole[:8]), "little")
    if not 0 < length <= min(size - 8, _LARGEST_HEADER):
        raise BadFile(f"{str(where)!r} says that its header has {length} bytes, and has {size - 8} altogether")
    try:
        header = json.loads(bytes(whole[8 : 8 + length]), object_pairs_hook=_once)
        about = header.pop("__metadata__")
        programs = json.loads(about[KEY], object_pairs_hook=_once)
        if programs["version"] != VERSION:
            raise BadFile(f"version {programs['version']!r}, where this engine reads version {VERSION}")
        arrays = _arrays(header, whole[8 + length :])
        check = zlib.crc32(about[KEY].encode())
        for array in arrays:
            check = zlib.crc32(np.ascontiguousarray(array).data, check)
        if f"{check:08x}" != about[CHECK]:
            raise BadFile("its numbers are not those that were written: the file is damaged")
        return programs, arrays
    except BadFile as error:
        raise BadFile(f"{str(where)!r} is no compiled model that can be read: {error}") from None
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        OverflowError,
        UnicodeDecodeError,
    ) as error:
        raise BadFile(f"{str(where)!r} is no compiled model ({type(error).__name__}: {str(error)[:200]})") from None


def _arrays(header: dict[str, Any], data: NDArray[Any]) -> list[NDArray[Any]]:
    found = {}
    for name, said in header.items():
        kind, (start, end) = np.dtype(_TYPES[said["dtype"]]), said["data_offsets"]
        shape = tuple(said["shape"])
        if not all(isinstance(n, int) and 0 <= n < 1 << 40 for n in (*shape, start, end)) or len(shape) > 8:
            raise BadFile(f"array {name!r} has an impossible shape or place")
        if not start <= end <= len(data) or end - start != prod(shape) * kind.itemsize:
            raise BadFile(f"array {name!r} lies outside of the file, or has another length than its shape")
        if not name.startswith("gap"):
            found[int(name)] = data[start:end].view(kind).reshape(shape)
    if sorted(found) != list(range(len(found))):
        raise BadFile("arrays are missing")
    if len(data) != max((said["data_offsets"][1] for said in header.values()), default=0):
        raise BadFile("it is longer than its header says")
    return [found[k] for k in range(len(found))]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise BadFile("a key occurs twice")
    return made
