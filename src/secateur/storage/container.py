"""The container: a safetensors file that is open for reading. Nothing in it is believed before it was checked."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import BadFile
from secateur.packing.document import DTYPES, Document, parse_json
from secateur.packing.pack import METADATA_KEY

__all__ = ["Container", "opened"]

_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Container:
    """What the header says, and the tensors on demand: views of the file, nothing is read before it is used.

    Args:
        path, nbytes: the file and its size.
        shapes, dtypes: of every stored tensor, by key.
        document: what Secateur wrote, or ``None`` for a plain safetensors file.
    """

    path: Path
    nbytes: int
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    document: Document | None
    _file: Any = field(repr=False)

    def __getitem__(self, key: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(key)
        except (SafetensorError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise BadFile(f"{str(self.path)!r}: {key!r} cannot be read ({_short(error)})") from None
        return tensor

    def part_nbytes(self, key: str) -> int:
        """Bytes of one stored tensor."""
        return prod(self.shapes[key]) * DTYPES[self.dtypes[key]].itemsize


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Container]:
    """Open a safetensors file and read its header; every complaint about the content names the file.

    Raises:
        BadFile: it is damaged, truncated or hostile.
        OSError: it cannot be opened.
    """
    where = Path(path)
    with where.open("rb") as raw:  # a missing file or a folder is an OSError that says so
        nbytes = os.fstat(raw.fileno()).st_size
        try:
            with safe_open(where, framework="pt") as file:
                header = _header(raw.read(8), raw)
                yield _container(where, nbytes, header, file)
        except SafetensorError as error:
            raise BadFile(f"{str(where)!r} is no readable safetensors file ({_short(error)})") from None
        except BadFile as error:
            said = str(error)
            raise BadFile(said if repr(str(where)) in said else f"{str(where)!r}: {said}") from None


def _header(length: bytes, raw: Any) -> dict[str, Any]:
    # The library has found this header sound, but of a key that occurs twice it silently drops one.
    header = parse_json(raw.read(int.from_bytes(length, "little")))
    if not isinstance(header, dict):
        raise BadFile("the header is no JSON object")
    return header


def _container(path: Path, nbytes: int, header: dict[str, Any], file: Any) -> Container:
    metadata = header.pop("__metadata__", None) or {}
    for key, said in header.items():
        if said["dtype"] not in DTYPES:
            raise BadFile(f"{key!r} has type {said['dtype']!r}; there are {', '.join(DTYPES)}")
        if len(said["shape"]) > 64 or prod(size for size in said["shape"] if size) > _LARGEST >> 3:
            raise BadFile(f"{key!r} has a shape that cannot exist")
    return Container(
        path=path,
        nbytes=nbytes,
        shapes={key: tuple(said["shape"]) for key, said in header.items()},
        dtypes={key: said["dtype"] for key, said in header.items()},
        document=Document.from_json(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None,
        _file=file,
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
