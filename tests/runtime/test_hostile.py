"""Programs that were written to do harm: each is one change away from one that runs, and each is refused when it is loaded."""

import copy
import json
import struct

import numpy as np
import pytest
import torch

import secateur as sc
import secateur_engine

pytestmark = pytest.mark.skipif(not secateur_engine.available(), reason="the compiled engine is missing")
ARENA, CONSTANT, SLOT, STATE = range(4)
ROOM = 4096
EDGE = 1 << 63


def tensor(shape, strides=None, offset=64, space=ARENA, number=0):
    if strides is None:
        strides = [int(np.prod(shape[d + 1 :], dtype=int)) for d in range(len(shape))]
    return [space, number, offset, list(shape), list(strides)]


def floats(*shape):
    return np.zeros(shape, np.float32)


def whole(*numbers):
    return np.array(numbers, np.int32)


def planes(offset, channels=2, height=4, width=8):
    return tensor([1, channels, height, width], [64 * channels, 64, 8, 1], offset)


LIMITS = ["-inf", "inf"]
# kind: tensors, which of them are written, integers, numbers, arrays
STEPS = {
    "copy": ([tensor([8]), tensor([8], offset=512)], [1], [], [], []),
    "unary": ([tensor([8]), tensor([8], offset=512)], [1], [5], [0, 0], []),
    "binary": ([tensor([8]), tensor([8]), tensor([8], offset=512)], [2], [0], LIMITS, []),
    "where": ([tensor([8]), tensor([8]), tensor([8]), tensor([8], offset=512)], [3], [], [], []),
    "reduce": ([tensor([4, 8]), tensor([4, 8], [1, 0], 512)], [1], [0], [], []),
    "norm": ([tensor([4, 8]), tensor([4, 8], offset=512)], [1], [1, 0, 0], [1e-5], []),
    "softmax": ([tensor([4, 8]), tensor([4, 8], offset=512)], [1], [], [], []),
    "group_norm": ([tensor([1, 4, 8]), tensor([1, 4, 8], offset=512)], [1], [2, 0], [1e-5], []),
    "lookup": ([tensor([4]), tensor([4, 8], offset=512)], [1], [5], [], [floats(40)]),
    "matmul": ([tensor([1, 2, 4]), tensor([1, 4, 8]), tensor([1, 2, 8], offset=512)], [2], [], [], []),
    "product": (
        [tensor([4, 16]), tensor([2, 16], offset=512)], [1], [0, 0, 0, 0, 0, 0, 1, 0, 2, 0], [*LIMITS, 0, 0],
        [floats(2), whole(0, 1, 2, 3), whole(0, 0, 0, 0), floats(8)],
    ),
    "vectors": ([tensor([1, 4]), tensor([1, 2], offset=512)], [1], [0, 0, 0], [0, 0], [floats(2), floats(8)]),
    "vectors, halves": (
        [tensor([1, 20]), tensor([1, 2], offset=512)], [1], [0, 2, 0], [0, 0], [floats(2), floats(32), whole(0, 1, 1 << 21, -1)],
    ),
    "phases": ([planes(64), planes(512, 8, 2, 4)], [1], [2, 2], [], []),
    "border": ([planes(64)], [0], [16, 16, 4], [], []),
    "depthwise": ([planes(64), planes(512)], [1], [3, 3, 1, 1, 1, 1, 1], LIMITS, [floats(18), floats(2)]),
    "pool": ([planes(64), planes(512, 2, 2, 4)], [1], [2, 2, 2, 2, 0, 0, 1, 1, 1, 0, 0], [], []),
    "resample": ([planes(64), planes(512)], [1], [1], [], [whole(*[0] * 32), whole(*[0] * 32)]),
    "attention": ([*[tensor([1, 1, 2, 4])] * 3, tensor([1, 1, 2, 4], offset=512)], [3], [0, 0], [1.0], []),
    "append": ([tensor([1, 1, 2, 4]), tensor([1, 1, 4, 4], offset=0, space=STATE)], [1], [], [], []),
    "recurrent": (
        [tensor([3, 1, 8]), tensor([3, 1, 2], offset=512), *[tensor([1, 2], offset=64 * k) for k in range(9, 13)]],
        [1, 4, 5], [1, 0, 0, 0], [], [floats(8), floats(16)],
    ),
}  # fmt: skip


def loaded(path, kind, tensors, ints, numbers, arrays, arena=ROOM, slot=64):
    text = {"shape": [slot], "dtype": "float32", "split": False}
    step = [kind.split(",")[0], tensors, ints, numbers, list(range(len(arrays)))]
    program = {"size": 1, "arena": arena, "state": 64, "inputs": [text], "outputs": [text], "steps": [step]}
    document = {"programs": [program], "cache": 8}
    secateur_engine.write(path, document, [*arrays, floats(ROOM)])
    return secateur_engine.load(path)


@pytest.mark.parametrize("kind", STEPS)
def test_every_operation_runs_as_it_is_meant(kind, tmp_path):
    tensors, _, *rest = STEPS[kind]
    model = loaded(tmp_path / "good.sc", kind, tensors, *rest)
    assert model.run([floats(64)], np.zeros(64 + 2048, np.float32), 0).shape == (64,)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("offset", [EDGE - 1, EDGE - 8, EDGE - 64, -1, ROOM])
def test_an_offset_lies_in_the_memory(kind, offset, tmp_path):
    tensors, _, *rest = copy.deepcopy(STEPS[kind])
    for one in tensors:
        one[2] = offset
    with pytest.raises(secateur_engine.BadFile, match="outside of its memory"):
        loaded(tmp_path / "hostile.sc", kind, tensors, *rest)


@pytest.mark.parametrize(("kind", "which"), [(kind, k) for kind, step in STEPS.items() for k in step[1]])
def test_constants_are_not_written(kind, which, tmp_path):
    tensors, _, ints, numbers, arrays = copy.deepcopy(STEPS[kind])
    tensors[which][:2] = CONSTANT, len(arrays)  # the one that `loaded` adds
    with pytest.raises(secateur_engine.BadFile, match="a constant cannot be written"):
        loaded(tmp_path / "hostile.sc", kind, tensors, ints, numbers, arrays)


HOSTILE = {  # kind; tensors, integers and arrays that are put in the places of others; the arena; what is said
    "a first row that wraps": ("product", {}, {6: 1, 7: EDGE - 1}, {}, ROOM, "64 bits"),
    "a first row that wraps, blocks": ("product", {}, {6: 2, 7: EDGE - 2, 8: 1}, {}, ROOM, "64 bits"),
    "groups that wrap": ("product", {}, {6: 4, 8: 1 << 62}, {}, ROOM, "64 bits"),
    "rows after the last": ("product", {}, {6: 1, 7: 1}, {}, ROOM, "rows that are not there"),
    "byte offsets that wrap": ("product", {0: tensor([4, 16], [1 << 28, 1])}, {}, {}, 1 << 30, "32-bit offsets"),
    "byte offsets that wrap with their shifts": (
        "product", {0: tensor([64, 16], [(1 << 23) - 1, 1], 1 << 24)}, {}, {2: whole(0, -(1 << 24) + 1, (1 << 24) - 1, 0)}, 1 << 30,
        "32-bit offsets",
    ),
    "byte offsets that wrap in a packed copy": (
        "product", {0: tensor([256, 16], [16, 1], 1 << 24)}, {1: 1, 2: 1, 3: 1 << 30, 4: 1},
        {2: whole(0, -(1 << 24) + 1, (1 << 24) - 1, 0)}, 1 << 26, "32-bit offsets",
    ),
    "halves of other rows": ("vectors, halves", {}, {}, {2: whole(0, 0, 0)}, ROOM, "halves have another size"),
    "halves of fewer values": ("vectors, halves", {}, {}, {1: floats(24)}, ROOM, "halves have another size"),
    "a form that is not known": ("vectors, halves", {}, {1: 3}, {}, ROOM, "unknown form"),
    "a table that wraps": ("lookup", {1: tensor([4, 4], offset=512)}, {0: (1 << 62) + 10}, {}, ROOM, "64 bits"),
    "strides that wrap": (
        "depthwise",
        {0: tensor([1, 2, 1, 8], [1, 64, 1 << 33, 1]), 1: tensor([1, 2, 1 << 29, 8], [1, 1 << 32, 8, 1], 512)},
        {2: 1 << 11, 3: 0, 4: 0}, {}, 1 << 33 | 1 << 20, "64 bits",
    ),
    "planes read from an input": ("depthwise", {0: tensor([1, 2, 2, 8], [32, 16, 8, 1], 16, SLOT)}, {}, {}, ROOM, "the arena"),
    "planes written to an output": ("depthwise", {1: tensor([1, 2, 2, 8], [32, 16, 8, 1], 0, SLOT, 1)}, {}, {}, ROOM, "the arena"),
    "channels that run backwards": ("depthwise", {0: tensor([1, 2, 4, 8], [128, -64, 8, 1], 128)}, {}, {}, ROOM, "backwards"),
    "images that run backwards": (
        "depthwise",
        {0: tensor([2, 2, 4, 8], [-256, 64, 8, 1], 512), 1: tensor([2, 2, 4, 8], [-256, 64, 8, 1], 1024)},
        {}, {}, ROOM, "backwards",
    ),
    "planes of more columns than 32 bits count": (
        "depthwise", {0: tensor([1, 1, 4, 8]), 1: tensor([1, 1, 1, 1 << 31], offset=512)}, {}, {0: floats(9), 1: floats(1)}, 1 << 32,
        "planes are too large",
    ),
    "zeros that wrap": ("border", {0: tensor([1, 1, 4, 8], [64, 64, 8, 1])}, {1: EDGE - 1}, {}, ROOM, "64 bits"),
    "zeros before that wrap": ("border", {}, {0: EDGE - 1}, {}, ROOM, "64 bits"),
    "scratch of a reduction": ("reduce", {0: tensor([4, 1 << 30], [0, 0]), 1: tensor([4, 1 << 30], [0, 1])}, {}, {}, 1 << 31, "scratch"),
    "scratch of a norm": ("norm", {k: tensor([4, 1 << 31], [0, 0]) for k in (0, 1)}, {}, {}, ROOM, "scratch"),
    "scratch of a softmax": ("softmax", {k: tensor([4, 1 << 31], [0, 0]) for k in (0, 1)}, {}, {}, ROOM, "scratch"),
    "scratch of a softmax of columns": ("softmax", {k: tensor([4, 1 << 29], [1, 0]) for k in (0, 1)}, {}, {}, ROOM, "scratch"),
    "scratch of groups": ("group_norm", {k: tensor([1, 4, 1 << 31], [0, 0, 0]) for k in (0, 1)}, {}, {}, ROOM, "scratch"),
    "scratch of a product": (
        "matmul",
        {0: tensor([1, 2, 1 << 16], [0] * 3), 1: tensor([1, 1 << 16, 1 << 16], [0] * 3), 2: tensor([1, 2, 1 << 16], [0] * 3)},
        {}, {}, ROOM, "scratch",
    ),
    "scratch of attention": ("attention", {k: tensor([1, 1, 1 << 28, 4], [0] * 4) for k in (1, 2)}, {}, {}, ROOM, "scratch"),
    "scratch of a pool": ("pool", {1: tensor([1, 2, 2, 1 << 20], [0, 0, 0, 1])}, {3: 65535}, {}, 1 << 21, "scratch"),
    "more elements than numbers": ("copy", {k: tensor([1 << 33] * 2, [0, 0]) for k in (0, 1)}, {}, {}, ROOM, "64 bits"),
    "more elements than memory": ("copy", {k: tensor([1 << 21] * 2, [0, 0]) for k in (0, 1)}, {}, {}, ROOM, "impossibly large"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_numbers_that_do_not_fit_are_refused(what, tmp_path):
    kind, *changes, arena, said = HOSTILE[what]
    tensors, _, ints, numbers, arrays = copy.deepcopy(STEPS[kind])
    for change, row in zip(changes, (tensors, ints, arrays), strict=True):
        for place, value in change.items():
            row[place] = value
    with pytest.raises(secateur_engine.BadFile, match=said):
        loaded(tmp_path / "hostile.sc", kind, tensors, ints, numbers, arrays, arena)


def striped(path, head, steps):
    text = {"shape": [64], "dtype": "float32", "split": False}
    program = {"size": 1, "arena": ROOM, "local": 256, "state": 0, "inputs": [text], "outputs": [text]}
    program["steps"] = [
        ["stripes", [], head, [], []],
        *([kind, tensors, ints, [], []] for kind, tensors, *ints in steps),
    ]
    secateur_engine.write(path, {"programs": [program]}, [floats(8)])
    return secateur_engine.load(path)


def moving(*steps, offset=64, space=ARENA):
    return [*tensor([8], offset=offset, space=space), *steps]


IN, OUT = moving(16, 64), moving(16, 64, offset=1024)
STRIPES = {  # begin, follow, images, stripes, rows, written, apart; the steps; what is said
    "none": ([0, 0, 2, 3, 2, 8, 32], [("copy", [IN, OUT])], "impossible stripes"),
    "less than none": ([1, -1, 2, 3, 2, 8, 32], [("copy", [IN, OUT])], "impossible stripes"),
    "as many as memory": ([1, 0, 1, 1000, 2, 8, 32], [("copy", [IN, OUT])], "outside of its memory"),
    "as many images": ([1, 0, 1000, 1, 2, 8, 32], [("copy", [IN, OUT])], "outside of its memory"),
    "that wrap": ([1, 0, 1 << 40, 1 << 40, 2, 8, 32], [("copy", [IN, OUT])], "64 bits"),
    "more than are counted": ([1, 0, 1, 1 << 31, 1, 8, 32], [("copy", [IN, OUT])], "impossible stripes"),
    "of nothing": ([1, 0, 1, 1 << 30, 1, 8, 32], [("copy", [moving(0, 0)] * 2)], "stripes of nothing"),
    "of one image": ([1, 0, 9, 1, 1, 8, 32], [("copy", [moving(1, 0)] * 2)], "stripes of nothing"),
    "backwards": ([1, 0, 1, 3, 2, 8, 32], [("copy", [moving(-16, 0), OUT])], "moves backwards"),
    "within stripes": ([2, 0, 1, 3, 2, 8, 32], [("stripes", [])], "stripes within stripes"),
    "too large for a thread": ([1, 0, 1, 3, 2, 8, 32], [("copy", [IN, moving(0, 0, offset=250, space=4)])], "outside of its memory"),
    "with what runs elsewhere": ([1, 0, 1, 3, 2, 8, 32], [("outside", [], 0)], "in stripes"),
}  # fmt: skip


def test_stripes_run_as_they_are_meant(tmp_path):
    model = striped(tmp_path / "good.sc", [1, 0, 2, 3, 2, 8, 32], [("copy", [IN, OUT])])
    assert model(np.zeros(64, np.float32)).shape == (64,)


@pytest.mark.parametrize("what", STRIPES)
def test_impossible_stripes_are_refused(what, tmp_path):
    head, steps, said = STRIPES[what]
    with pytest.raises(secateur_engine.BadFile, match=said):
        striped(tmp_path / "hostile.sc", head, steps)


def test_stripes_without_their_steps_are_refused(tmp_path):
    with pytest.raises(secateur_engine.BadFile, match="stripes lack operations"):
        striped(tmp_path / "hostile.sc", [2, 0, 1, 3, 2, 8, 32], [("copy", [IN, OUT])])


def test_nothing_moves_or_is_a_threads_own_without_stripes(tmp_path):
    tensors, _, *rest = STEPS["copy"]
    for one in (moving(16, 0), moving(0, 0, space=4)):
        with pytest.raises(secateur_engine.BadFile, match="where there are no stripes"):
            loaded(tmp_path / "hostile.sc", "copy", [one, tensors[1]], *rest)


@pytest.mark.parametrize("size", [-1, 1 << 34, 1 << 62])
def test_inputs_have_possible_sizes(size, tmp_path):
    tensors, _, *rest = STEPS["copy"]
    with pytest.raises(secateur_engine.BadFile, match="impossible amount of memory"):
        loaded(tmp_path / "hostile.sc", "copy", tensors, *rest, slot=size)


HERE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {  # what stands in the header besides the programs; what is said
    "a place outside of the file": ({"0": {**HERE, "data_offsets": [4, 8]}}, "array '0' lies outside"),
    "a length that is not the shape's": ({"0": {**HERE, "shape": [2]}}, "another length than its shape"),
    "an impossible shape": ({"0": {**HERE, "shape": [1 << 40]}}, "array '0' has an impossible shape"),
    "a missing array": ({"1": HERE}, "arrays are missing"),
    "another version": ({"0": HERE}, "version 1"),
    "a key that occurs twice": ('"0": {}, "0": {}', "a key occurs twice"),
    "an unknown type": ({"0": {**HERE, "dtype": "F8"}}, "KeyError"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_are_refused_by_the_name_of_their_file(what, tmp_path):
    entries, said = HEADERS[what]
    version = 1 if what == "another version" else 2
    programs = {"__metadata__": {"secateur_engine": json.dumps({"version": version, "programs": []})}}
    more = entries if isinstance(entries, str) else json.dumps(entries)[1:-1]
    header = f"{{{json.dumps(programs)[1:-1]}, {more}}}".encode()
    (tmp_path / "hostile.sc").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(secateur_engine.BadFile, match=said) as caught:
        secateur_engine.load(tmp_path / "hostile.sc")
    assert str(tmp_path / "hostile.sc") in str(caught.value)


def test_damage_anywhere_is_found(tmp_path):
    """A checksum finds what no other check can: another weight is a sound program too."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU(), torch.nn.Linear(30, 7))
    path, chance = tmp_path / "net.sc", np.random.default_rng(0)
    sc.compile(net, torch.randn(2, 40), threads=1).save(path)
    whole = path.read_bytes()
    for _ in range(300):
        at, bit = int(chance.integers(len(whole))), int(chance.integers(8))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
        try:
            found = secateur_engine.load(path)
        except secateur_engine.BadFile:
            continue
        x = np.ones((2, 40), np.float32)  # filling between arrays, spaces and the like
        path.write_bytes(whole)
        assert np.array_equal(found(x), secateur_engine.load(path)(x))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gives", 1),
        ("gives", {"tuple": [0, 7]}),
        ("gives", {"what": []}),
        ("takes", {"args": [0, 1], "kwargs": [], "names": []}),
        ("takes", {"args": [3], "kwargs": [], "names": []}),
        ("takes", {"args": [{"tuple": 5}], "kwargs": [], "names": []}),
        ("takes", {"args": [0]}),
    ],
)
def test_trees_of_inputs_and_outputs_that_do_not_fit_are_refused(key, value, tmp_path):
    compiled = sc.compile(torch.nn.Linear(4, 4), torch.randn(2, 4), threads=1).engine
    secateur_engine.write(tmp_path / "hostile.sc", {**compiled.document, key: value}, compiled.arrays)
    with pytest.raises(secateur_engine.BadFile):
        secateur_engine.load(tmp_path / "hostile.sc")
