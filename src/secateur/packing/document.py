"""The document: what the header of a packed file says about its tensors, as one JSON text.

It is written and read here and nowhere else; ``docs/file-format.md`` is its specification.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from secateur.errors import BadFile

__all__ = ["DTYPES", "Document", "Entry", "dtype_name", "key_of", "parse_json"]

VERSION = 1
_LARGEST = (1 << 63) - 1

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""The types that are stored, by safetensors' words for them."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Size = Annotated[int, Field(ge=0, le=_LARGEST)]


def dtype_name(dtype: torch.dtype) -> str | None:
    """The word of safetensors for ``dtype``; ``None`` where it is not stored."""
    return _NAMES.get(dtype)


def key_of(name: str, part: str) -> str:
    """Where a part lies in the file: after the last colon stands the part. Dense tensors keep their plain name.

    >>> key_of("fc.weight", "data"), key_of("fc.weight", "mask"), key_of("a:b", "data")
    ('fc.weight', 'fc.weight:mask', 'a:b:data')
    """
    return name if part == "data" and ":" not in name else f"{name}:{part}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor that is not stored plainly.

    Args:
        format: the file in ``secateur/formats`` that reads it.
        dtype: the type of the tensor that comes back; the values in the file may be narrower.
        shape: its shape.
        options: the fields of the format, such as ``bits`` of gaps.
        scaled: the values are integers, to be multiplied with one scale for each index of the first dimension.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    format: str
    dtype: str
    shape: Annotated[tuple[Size, ...], Field(max_length=64)]
    options: dict[str, Size] = field(default_factory=dict)
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"there is no dtype {self.dtype!r}")
        if math.prod(size for size in self.shape if size) > _LARGEST >> 3:
            raise ValueError(f"a tensor of shape {list(self.shape)} cannot exist")

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor that comes back."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a packed file says about itself.

    Args:
        version: of the file format.
        model: the class that the weights come from; for people, never imported.
        tensors: the tensors that are not stored plainly.
        tied: names that share the tensor of another name.
        masks: how the mask of a parameter is found: "nonzero" (where the tensor is not zero), "flips" (that, changed where
            the stored bool tensor ``name:mask`` is true) or "alone" (``name:mask`` itself) or "structure" (what the structure keeps).
        report: the receipt.
        structure: how a narrowed model differs from its class, as `Structure.to_dict` says it.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    version: int = VERSION
    model: str = ""
    tensors: dict[str, Entry] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] | None = None
    structure: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The document as compact JSON; what is empty is left out."""
        tensors = {name: _without_empty(asdict(entry), keep="shape") for name, entry in self.tensors.items()}
        said = {
            "version": self.version,
            "model": self.model,
            "tensors": tensors,
            "tied": self.tied,
            "masks": self.masks,
            "report": _plain(self.report),
            "structure": self.structure,
        }
        return json.dumps(_without_empty(said), separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Document":
        """Read a document.

        Raises:
            BadFile: it is no JSON, has unknown, doubled or missing keys, or values of a wrong type or size.
        """
        found = parse_json(text)
        version = found.get("version") if isinstance(found, dict) else None
        if type(version) is not int or version < 1:
            raise BadFile(f"the header's document has no version of the file format (found {str(version)[:40]})")
        if version > VERSION:
            raise BadFile(f"the file has version {version} and this Secateur reads up to {VERSION}: update Secateur")
        try:
            return _DOCUMENT.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise BadFile(f"the header's document is wrong at {where or 'its top'}: {first['msg']}") from None


_DOCUMENT = TypeAdapter(Document)


def parse_json(text: str | bytes) -> Any:
    """Read JSON that says everything once and holds no NaN.

    Raises:
        BadFile: it is no such JSON, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"the header holds no proper JSON: {str(error)[:200]}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _without_empty(said: Mapping[str, Any], keep: str = "") -> dict[str, Any]:
    return {key: value for key, value in said.items() if value or key == keep}


def _plain(value: Any) -> Any:
    """JSON values: what has no JSON is written as text, NaN and infinity too."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, str | int | float) else str(value)
