"""Weights that stay in their safetensors files: mapped into memory, read when they are touched, given up again by the system when it needs room.

A *private* map may be changed, and the file does not know of it. A *shared* map is the file: what is changed in memory is changed on the
disk. Either way a network far larger than memory can be built, and run block by block.
"""

import copy
import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.errors import BadFile, WrongModel
from secateur.layers import facts_of

__all__ = ["files_in", "give_back", "hollow", "mapped", "tensors_in"]

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_INDEX = "*.safetensors.index.json"


@contextmanager
def hollow() -> Iterator[None]:
    """Parameters that are made inside have a shape and no memory (the meta device); buffers are made as always.

    >>> with hollow():
    ...     layer = nn.BatchNorm1d(1000)
    >>> layer.weight.device.type, layer.running_mean.device.type
    ('meta', 'cpu')
    """
    plain, known = nn.Module.register_parameter, WeakTensorKeyDictionary()  # one that is registered twice stays one

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        plain(self, name, param)
        if param is not None and param.device.type != "meta":
            if param not in known:
                known[param] = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
            self._parameters[name] = known[param]

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = plain  # type: ignore[method-assign]


def files_in(source: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint: a file, or a folder with an index or without.

    Raises:
        BadFile: there is none, or the index names one that is not there.
    """
    place = Path(source)
    if place.is_file():
        return [place]
    indices = sorted(place.glob(_INDEX))
    if len(indices) > 1:
        raise BadFile(
            f"{place} has {len(indices)} indices ({', '.join(i.name for i in indices)}): leave one checkpoint in it"
        )
    files = [place / name for name in _named_by(indices[0])] if indices else sorted(place.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        what = f"lacks {', '.join(missing)}, which its index names" if missing else "holds no safetensors file"
        others = sorted(path.name for end in ("bin", "pt", "pth", "gguf") for path in place.glob(f"*.{end}"))
        more = (
            f" (it has {others[0]}: load that, and write the state_dict with safetensors)"
            if others and not missing
            else ""
        )
        raise BadFile(f"{place} {what}{more}: pass a checkpoint, a file or a folder")
    return files


def _named_by(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{index} is no index of safetensors files ({type(error).__name__}: {error})") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise BadFile(
            f"{index} names {outside[0]!r}, which lies elsewhere: leave all files of a checkpoint in one folder"
        )
    return names


def tensors_in(file: Path, *, shared: bool = False) -> dict[str, Tensor]:
    """The tensors of one file, by name, mapped; with ``shared`` what is written into them is written into the file.

    Tensors of a type that torch does not have are left out.

    Raises:
        BadFile: it is no safetensors file, damaged, or of a layout that cannot be mapped.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        bytes_: Any = torch.UntypedStorage.from_file(str(file), shared, size)
        known = {name: entry for name, entry in header.items() if entry["dtype"] in _DTYPES}  # nobody asks for others
        return {name: _view(bytes_, entry, 8 + length, size) for name, entry in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{file} is no safetensors file that can be mapped ({type(error).__name__}: {error})") from error


def _view(bytes_: torch.UntypedStorage, entry: Any, begin: int, size: int) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], [int(n) for n in entry["shape"]]
    first, last = (begin + int(offset) for offset in entry["data_offsets"])
    width = dtype.itemsize
    count = 1
    for n in shape:
        count *= n
    if min(shape, default=1) < 0 or last - first != count * width or not begin <= first <= last <= size:
        raise ValueError(f"{shape} of {dtype} do not fit into bytes {first} to {last} of {size}")
    if first % width:
        raise ValueError(f"byte {first} is no place for {dtype}; write the file again with safetensors")
    flat = torch.empty(0, dtype=dtype).set_(bytes_, first // width, (count,), (1,))
    return flat.view(shape)


def mapped(build: Callable[[], nn.Module] | nn.Module, source: str | Path, *, shared: bool = False) -> nn.Module:
    """A network whose parameters and buffers lie in the files of ``source``, in eval mode.

    Args:
        build: makes the network; its parameters take no memory meanwhile. Or a network on the meta device, of which a copy is filled.
        source: a safetensors file, or a folder of them as the Hugging Face hub lays it out.
        shared: whether to change the network is to change the files.

    Raises:
        BadFile: see `files_in` and `tensors_in`; or a tensor is in two files.
        WrongModel: the files are of another network, or something of this one is in no file or of a type that layers do not multiply.
    """
    model = copy.deepcopy(_hollow_network(build))
    found: dict[str, Tensor] = {}
    for file in files_in(source):
        fresh = tensors_in(file, shared=shared)
        twice = sorted(fresh.keys() & found.keys())
        if twice:
            raise BadFile(f"{twice[0]!r} is in two files of {source}: leave one checkpoint in it")
        found |= fresh
    _fill(model, found, str(source))
    return model.eval()


def _hollow_network(build: Callable[[], nn.Module] | nn.Module) -> nn.Module:
    if isinstance(build, nn.Module):
        model: Any = build
    else:
        with hollow():
            model = build()
    if not isinstance(model, nn.Module):
        raise WrongModel(
            f"build gave {type(model).__name__}, not a network: pass a function that makes it and returns it"
        )
    full = next((name for name, p in model.named_parameters() if p.device.type != "meta"), None)
    if full is not None:
        raise WrongModel(
            f"{full!r} of {type(model).__name__} is in memory already: pass a function that makes the network anew when it is called, e.g. "
            "lambda: AutoModelForCausalLM.from_config(config)"
        )
    return model


def _fill(model: nn.Module, found: dict[str, Tensor], source: str) -> None:
    own: dict[int, list[str]] = {}  # tied ones stand together
    everything = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in everything.items():
        own.setdefault(id(tensor), []).append(name)
    state, missing = set(model.state_dict()), []
    for names in own.values():
        named = next((name for name in names if name in found), None)
        old = everything[names[0]]
        if named is None:
            if old.device.type == "meta" or any(name in state for name in names):
                missing.append(names[0])
            continue
        new = found[named]
        if new.shape != old.shape:
            raise WrongModel(f"{named!r} is {list(new.shape)} in {source}, but {list(old.shape)} in this network")
        unlike = next((name for name in names if name in found and not torch.equal(found[name], new)), None)
        if unlike is not None:
            raise WrongModel(
                f"{named!r} and {unlike!r} are one tensor in this network, but two different ones in {source}"
            )
        if isinstance(old, nn.Parameter) and (not new.is_floating_point() or new.element_size() < 2):
            raise WrongModel(
                f"{named!r} is {new.dtype} in {source}: quantised weights cannot be pruned in place; pass the checkpoint before that"
            )
        placed = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        for name in names:
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, placed)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        some = ", ".join(sorted(found)[:3])
        raise WrongModel(
            f"{source} holds nothing for {', '.join(missing[:3])}{more} of {type(model).__name__} (it has {some}, ...): build the network that was "
            "saved; buffers that no file holds need a function that builds it, not a network on the meta device"
        )
    _check_types(model, source)


def give_back() -> None:
    """Hand memory that is free but scattered back to the system, where the C library can."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _check_types(model: nn.Module, source: str) -> None:
    """A layer multiplies and adds in one type."""
    for path, module in model.named_modules():
        types = {p.dtype: f"{path}.{name}".lstrip(".") for name, p in module.named_parameters(recurse=False)}
        if len(types) > 1 and facts_of(module):
            one, other = list(types.items())[:2]
            raise WrongModel(
                f"{source} has {one[1]!r} as {one[0]} and {other[1]!r} as {other[0]}, which {type(module).__name__} cannot use together: "
                "write the checkpoint in one type"
            )
