"""Coverage-guided fuzzing of the reader: whatever the bytes are, it answers with tensors, ``BadFile`` or ``WrongModel``.

    pip install atheris                                      (Python 3.11 and Linux)
    python tests/e2e/fuzz_storage.py --corpus DIR            write the seed corpus: a small file for every format
    python tests/e2e/fuzz_storage.py DIR -max_total_time=180 fuzz, starting from DIR; other options are libFuzzer's

Headers are mutated with their length kept right, so that mutations reach the document instead of dying at the container.
"""

import copy
import random
import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["secateur"]):
    import torch
    from torch import nn

    import secateur as sc
    from secateur.errors import BadFile, WrongModel
    from secateur.packing.pack import codecs, pack
    from secateur.storage import inspect, load, read_tensors, save

    codecs()  # imports the formats while imports are instrumented

_LIMIT = 1 << 22  # bytes that reading may give
_SHAPES = {"a": (8, 16), "b": (8, 16), "c": (40,), "d": (4, 8, 3)}
_FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, shape in _SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        self.e = self.a
        self.register_buffer("count", torch.tensor(3))


def seeds(folder: Path) -> None:
    """A file for every format and option, one with masks that differ from zeros, and rounded ones."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    net = Net()
    for sparsity in (0.0, 0.5, 0.85, 0.99):
        for parameter in net.parameters():
            drawn = torch.rand(parameter.shape, generator=generator)
            parameter.data = drawn * (torch.rand(parameter.shape, generator=generator) >= sparsity)
        for dtype in (None, "fp16", "int8"):
            save(net, folder / f"net-{sparsity}-{dtype}", dtype=dtype)
    masks = {name: parameter != 0 for name, parameter in net.named_parameters()}
    masks["a"][0, 0] ^= True
    receipt = sc.compare(nn.Linear(2, 2), nn.Linear(2, 2))
    save(sc.Pruned(net, sc.Masks(masks), receipt), folder / "masks")
    _every_format(folder)


def _every_format(folder: Path) -> None:
    from dataclasses import asdict, replace

    from safetensors.torch import save_file

    from secateur.packing.document import Entry, key_of

    weight = torch.zeros(8, 16)
    weight[:, ::8] = torch.arange(16.0).reshape(8, 2) + 1
    rest = pack(
        {name: torch.ones(shape) for name, shape in _SHAPES.items() if name != "a"} | {"count": torch.tensor(3)}
    )
    for name, codec in codecs().items():
        for one in codec.variants((8, 16)) if hasattr(codec, "variants") else (codec(),):
            parts = {key_of("a", part): tensor for part, tensor in (one.encode(weight) or {}).items()}
            entry = Entry(format=name, dtype="F32", shape=(8, 16), options=asdict(one))
            document = replace(rest.document, tensors={"a": entry}, tied={"e": "a"})
            if parts:
                path = folder / f"{name}-{abs(hash(one)) % 10**6}"
                save_file(dict(rest.parts) | parts, path, metadata={"secateur": document.to_json()})


def once(data: bytes) -> None:
    """Feed one file to every reader."""
    path = _FOLDER / "file.safetensors"
    path.write_bytes(data)
    for read in (inspect, lambda path: read_tensors(path, limit=_LIMIT), lambda path: load(path, _fresh())):
        try:
            found = read(path)
        except (BadFile, WrongModel):
            continue
        if isinstance(found, dict):
            assert sum(tensor.nbytes for tensor in found.values()) <= 2 * _LIMIT  # tied names share


_NET = Net()


def _fresh() -> nn.Module:
    return copy.copy(_NET)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate the header, the data or everything; in the first case the length before the header is mended."""
    rng = random.Random(seed)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > len(data) - 8 or rng.random() < 0.1:
        return bytes(atheris.Mutate(data, max_size))
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.6:
        header = (
            _edit(header, rng)
            if rng.random() < 0.6
            else bytes(atheris.Mutate(header, max(1, max_size - len(rest) - 8)))
        )
    else:
        rest = bytes(atheris.Mutate(rest, max(1, max_size - len(header) - 8)))
    return (len(header).to_bytes(8, "little") + header + rest)[:max_size]


def _edit(header: bytes, rng: random.Random) -> bytes:
    """Replace one number or word by another one."""
    import re

    spots = list(re.finditer(rb"\d+|[A-Za-z_0-9]{2,}", header)) or list(re.finditer(rb"^", header))
    spot = rng.choice(spots)
    others = [
        b"0",
        b"1",
        b"2",
        b"4",
        b"8",
        b"-1",
        b"1.5",
        b"1e9",
        b"18446744073709551615",
        b"9223372036854775807",
        b"[" * 50,
    ]
    new = rng.choice([*others, rng.choice(spots).group()])
    return header[: spot.start()] + new + header[spot.end() :]


if __name__ == "__main__":
    if sys.argv[1] == "--corpus":
        seeds(Path(sys.argv[2]))
    else:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        atheris.Setup([*sys.argv, "-max_len=16384", "-rss_limit_mb=4096", "-timeout=20"], once, custom_mutator=mutate)
        atheris.Fuzz()
