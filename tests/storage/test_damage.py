"""A damaged, truncated or hostile file gives ``BadFile`` (or a model that it does not fit), never a crash or a flood."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.storage.nets import Net, pruned
from tests.storage.test_storage import GOLDEN

import secateur as sc
from secateur.errors import BadFile, WrongModel
from secateur.packing.pack import METADATA_KEY
from secateur.storage import inspect, load, read_tensors, save

LIMIT = 1 << 22


def split(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, rest):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def edited(data, edit):
    """The file with its document changed by ``edit``."""
    header, rest = split(data)
    document = json.loads(header["__metadata__"][METADATA_KEY])
    new = edit(document)
    header["__metadata__"][METADATA_KEY] = new if isinstance(new, str) else json.dumps(new or document)
    return joined(header, rest)


def outcomes(data, folder):
    """What comes of each way to read ``data``; any error but ours comes out."""
    path = folder / "f.safetensors"
    path.write_bytes(data)
    return [_outcome(inspect, path), _outcome(lambda path: read_tensors(path, limit=LIMIT), path), _loaded(path)]


def _outcome(read, path):
    try:
        found = read(path)
    except (BadFile, WrongModel) as error:
        named = isinstance(error, WrongModel) or str(path) in str(error)
        return "refused" if named else f"refused without the name of the file: {error}"
    flood = isinstance(found, dict) and any(tensor.nbytes > LIMIT for tensor in found.values())
    return "flood" if flood else "read"


def _loaded(path):
    fresh = Net()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    outcome = _outcome(lambda path: load(path, fresh), path)
    written = any(not torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())
    return "refused, and the model written to" if outcome == "refused" and written else outcome


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    found = [GOLDEN.read_bytes()]
    for number, (model, dtype) in enumerate(
        [(pruned(0.5), None), (pruned(0.9), "int8"), (pruned(granularity="2:4"), None)]
    ):
        masks = {name: mask ^ (torch.arange(mask.numel()).view(mask.shape) == 3) for name, mask in model.masks.items()}
        save(sc.Pruned(model.model, sc.Masks(masks), model.report), folder / str(number), dtype=dtype)
        found.append((folder / str(number)).read_bytes())
    return found


@given(data=st.data())
def test_flipped_bytes(data, files, tmp_path_factory):
    raw = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert set(outcomes(bytes(raw), tmp_path_factory.getbasetemp())) <= {"read", "refused"}


@given(data=st.data())
def test_truncated_and_lengthened(data, files, tmp_path_factory):
    raw = data.draw(st.sampled_from(files))
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    for wrong in (cut, raw + b"\0" * data.draw(st.integers(1, 9))):
        assert outcomes(wrong, tmp_path_factory.getbasetemp()) == ["refused"] * 3


VALUES = st.one_of(
    st.integers(-2, 20),
    st.sampled_from([2**31, 2**63, 2**64, 10**30]),
    st.floats(),
    st.none(),
    st.booleans(),
    st.text(max_size=3),
) | st.lists(st.integers(-1, 9), max_size=3)


@settings(max_examples=200)
@given(data=st.data())
def test_edited_headers_and_documents(data, files, tmp_path_factory):
    raw = data.draw(st.sampled_from(files))

    def edit(tree):
        at = tree
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if isinstance(at[key], dict | list) and at[key] and data.draw(st.integers(0, 3)):
                at = at[key]
                continue
            what = data.draw(st.sampled_from(["change", "drop", "copy"]))
            other = at[data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))]
            if what == "drop":
                del at[key]
            else:
                at[key] = other if what == "copy" else data.draw(VALUES)
            return tree

    header, rest = split(raw)
    new = edited(raw, edit) if data.draw(st.booleans()) else joined(edit(header), rest)
    assert set(outcomes(new, tmp_path_factory.getbasetemp())) <= {"read", "refused"}


def entry(**changes):
    def edit(document):
        document["tensors"]["b"].update(changes)

    return edit


HOSTILE = {
    "unknown format": entry(format="zip"),
    "a format to import": entry(format="os:system"),
    "unknown option": entry(options={"x": 1}),
    "option out of range": lambda d: d["tensors"]["g"].update(options={"bits": 5}),
    "option that is no number": lambda d: d["tensors"]["g"].update(options={"bits": "4"}),
    "negative size": entry(shape=[-4]),
    "float size": entry(shape=[4.0]),
    "size that is true": entry(shape=[True, 4]),
    "huge size": entry(shape=[2**62]),
    "size beyond 64 bits": entry(shape=[2**64]),
    "size beyond every number": entry(shape=[10**400]),
    "sizes that overflow": entry(shape=[2**40, 2**40]),
    "too many dimensions": entry(shape=[1] * 100),
    "lying shape": entry(shape=[9]),
    "wrong dtype": entry(dtype="F64"),
    "no dtype": entry(dtype="F31"),
    "scales promised": entry(scaled=True),
    "scaled as a number": entry(scaled=1),
    "extra key": entry(extra=1),
    "missing parts": lambda d: d["tensors"].update(zz=d["tensors"]["b"]),
    "parts of nothing": lambda d: d["tensors"].pop("b"),
    "tied to itself": lambda d: d.update(tied={"again": "again"}),
    "tied in a circle": lambda d: d.update(tied={"x": "y", "y": "x"}),
    "tied to nothing": lambda d: d.update(tied={"again": "nothing"}),
    "tied over a tensor": lambda d: d.update(tied={"g": "b"}),
    "mask of nothing": lambda d: d.update(masks={"nothing": "nonzero"}),
    "mask that is not stored": lambda d: d.update(masks={"b": "flips"}),
    "mask of an unknown kind": lambda d: d.update(masks={"b": "maybe"}),
    "no version": lambda d: d.pop("version"),
    "version zero": lambda d: d.update(version=0),
    "unknown section": lambda d: d.update(extra={}),
    "empty structure": lambda d: d.update(structure={}),
    "structure of nonsense": lambda d: d.update(structure={"shapes": {"b": 3}, "kept": [], "sizes": {}}),
    "structure keeping nothing": lambda d: d.update(
        structure={"shapes": {"b": [8]}, "kept": {"b": {"0": "00"}}, "sizes": []}
    ),
    "structure beyond its shape": lambda d: d.update(
        structure={"shapes": {"b": [4]}, "kept": {"b": {"0": "ff"}}, "sizes": []}
    ),
    "structure of negative sizes": lambda d: d.update(structure={"shapes": {}, "kept": {}, "sizes": [["", "x", -1]]}),
    "mask of a structure that is not there": lambda d: d.update(masks={"b": "structure"}),
    "not an object": lambda d: "[]",
    "no JSON": lambda d: "{",
    "deep nesting": lambda d: "[" * 100_000,
    "deep nesting in the receipt": lambda d: '{"version":1,"report":' + '{"a":' * 5000 + "1" + "}" * 5001,
    "doubled keys": lambda d: '{"version":1,"version":1}',
    "NaN": lambda d: '{"version":NaN}',
    "a number of many digits": lambda d: '{"version":' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_documents(what, tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_bytes(edited(GOLDEN.read_bytes(), HOSTILE[what]))
    with pytest.raises(BadFile, match=re.escape(str(path))):
        read_tensors(path)


HEADERS = {
    "not an object": b"[]",
    "deep nesting": b"[" * 100_000,
    "doubled tensor": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "overlapping": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "a hole": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
    "offsets backwards": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[4,2]}}',
    "huge and empty": b'{"a":{"dtype":"U8","shape":[9223372036854775808,0],"data_offsets":[0,0]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "sizes that overflow": b'{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,4]}}',
    "four-bit floats": b'{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}',
    "metadata that is no text": b'{"__metadata__":{"secateur":1},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("what", HEADERS)
def test_hostile_headers(what, tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_bytes(joined(HEADERS[what], b"\0\0\0\0"))
    for read in (inspect, read_tensors, lambda path: load(path, Net())):
        with pytest.raises(BadFile, match=re.escape(str(path))):
            read(path)


@pytest.mark.parametrize(
    "raw", [b"", b"\0" * 7, b"\xff" * 8 + b"{}", (2**62).to_bytes(8, "little"), b"PK\3\4" + b"\0" * 60]
)
def test_other_bytes(raw, tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_bytes(raw)
    with pytest.raises(BadFile, match="no readable safetensors file"):
        inspect(path)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_scales_have_to_be_positive_numbers(scale, tmp_path):
    from safetensors.torch import load, save_file

    data = GOLDEN.read_bytes()
    parts = load(data) | {"k:scales": torch.tensor([scale, 1.0])}
    save_file(parts, tmp_path / "f", metadata=split(data)[0]["__metadata__"])
    with pytest.raises(BadFile, match="scales of 'k'"):
        read_tensors(tmp_path / "f")


def test_a_bad_tensor_leaves_the_model_alone(tmp_path):
    path = tmp_path / "f.safetensors"
    save(pruned(0.9), path)
    raw, rest = split(path.read_bytes())
    start, stop = raw["embed.weight:gaps"]["data_offsets"]
    path.write_bytes(joined(raw, rest[:start] + b"\xff" * (stop - start) + rest[stop:]))
    fresh = Net(seed=4)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(BadFile, match=r"'embed.weight', stored as gap"):
        load(path, fresh)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())
