"""Every storage format gives back every bit, says its size beforehand, and refuses what it cannot have written."""

import struct
from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BadFile
from secateur.formats.bitmask import Bitmask
from secateur.formats.block import Block
from secateur.formats.csr import Csr
from secateur.formats.dense import Dense
from secateur.formats.gap import Gap
from secateur.formats.n_of_m import NOfM
from secateur.packing.bits import bits_of, count_nonzero
from secateur.packing.document import DTYPES
from secateur.packing.pack import codecs
from secateur.protocols import Format

SHAPES = [
    (),
    (0,),
    (1,),
    (7,),
    (3, 0, 2),
    (1, 1),
    (4, 4),
    (5, 7),
    (8, 16),
    (16, 8, 3, 3),
    (2, 300),
    (600, 2),
    (3, 4, 5),
    (40, 1000),
]


def every(shape):
    for codec in codecs().values():
        yield from codec.variants(shape) if hasattr(codec, "variants") else (codec(),)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(bits_of(a), bits_of(b))


def sizes(parts):
    return {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()}


@st.composite
def tensors(draw):
    """Any bits in any stored type; zeros at random, in N:M groups, in whole rows, or nowhere."""
    dtype, shape = draw(st.sampled_from(list(DTYPES.values()))), draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = int(np.prod(shape, dtype=int))
    raw = rng.integers(0, 256, count * dtype.itemsize, dtype=np.uint8)
    if dtype == torch.bool:
        raw &= 1
    bits = raw.view(f"u{dtype.itemsize}")
    kind = draw(st.sampled_from(["random", "2:4", "rows"]))
    keep = rng.random(count) >= draw(st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0]))
    if kind == "2:4" and count % 4 == 0:
        keep = np.tile([True, False, False, True], count // 4)
    if kind == "rows" and len(shape) > 1 and count:
        keep = np.repeat(rng.random(shape[0]) < 0.3, count // shape[0])
    return torch.from_numpy(bits * keep.astype(bits.dtype)).view(dtype).reshape(shape)


@given(tensors())
def test_decoding_gives_every_bit_back_and_outlines_are_exact(tensor):
    nonzeros = count_nonzero(tensor)
    for codec in every(tuple(tensor.shape)):
        parts = codec.encode(tensor)
        outline = codec.outline(tensor, nonzeros, 1 << 60)
        assert (parts is None) == (outline is None), codec
        if parts is None:
            continue
        assert sizes(parts) == sizes(outline), codec
        assert set(parts) <= set(codec.parts)
        assert same_bits(codec.decode(parts, tuple(tensor.shape)), tensor), codec
        out = torch.ones_like(tensor)
        codec.fill_(out, parts)
        assert same_bits(out, tensor), codec
        total = sum(part.nbytes for part in outline.values())
        assert codec.outline(tensor, nonzeros, total) is None, "a limit is a size that must not be reached"


@given(tensors(), st.data())
def test_what_is_accepted_after_damage_is_what_encode_writes(tensor, data):
    """Canonical formats: a damaged file is refused, or it is the file of another tensor."""
    shape = tuple(tensor.shape)
    codec = data.draw(st.sampled_from([Bitmask(), Gap(bits=4), Gap(bits=8), Csr()]))
    parts = codec.encode(tensor)
    if parts is None or tensor.dtype == torch.bool:
        return
    name = data.draw(st.sampled_from(sorted(parts)))
    bits = bits_of(parts[name].clone()).view(np.uint8).copy()
    if not bits.size:
        return
    bits[data.draw(st.integers(0, bits.size - 1))] ^= data.draw(st.integers(1, 255))
    damaged = parts | {name: torch.from_numpy(bits).view(parts[name].dtype)}
    try:
        read = codec.decode(damaged, shape)
    except BadFile:
        return
    again = codec.encode(read)
    assert all(same_bits(again[part], damaged[part]) for part in damaged)


def test_the_roles_are_played():
    for codec in codecs().values():
        assert isinstance(codec(), Format)


def test_negative_zero_and_nan_payloads_survive():
    words = [0x80000000, 0x7FC00001, 0xFFFFFFFF, 0x7F800000, 0x00000001] + [0] * 59
    tensor = torch.frombuffer(bytearray(struct.pack("<64I", *words)), dtype=torch.float32).reshape(4, 16)
    for codec in every((4, 16)):
        parts = codec.encode(tensor)
        assert parts is None or same_bits(codec.decode(parts, (4, 16)), tensor)
    assert count_nonzero(tensor) == 5  # -0.0 is a value


def test_transposed_and_strided_tensors_are_read_in_their_own_order():
    tensor = torch.arange(24.0).reshape(4, 6).t()
    for codec in every((6, 4)):
        parts = codec.encode(tensor)
        assert parts is None or torch.equal(codec.decode(parts, (6, 4)), tensor)


def test_gaps_by_hand():
    weights = torch.zeros(40)
    weights[[0, 16, 39]] = torch.tensor([1.0, 2.0, 3.0])  # 0 zeros, 15 zeros, 22 zeros before each
    assert Gap(bits=8).encode(weights)["gaps"].tolist() == [0, 15, 22]
    # Four bits: 0 | 15 (skips 15), 0 | 15, 7 | and one 15 as padding: 0xF0, 0xF0, 0xF7 in pairs, low first.
    assert Gap(bits=4).encode(weights)["gaps"].tolist() == [0x0 | 0xF << 4, 0x0 | 0xF << 4, 0x7 | 0xF << 4]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("skip", [0, 14, 15, 16, 254, 255, 256, 511, 1 << 15, (1 << 20) + 3])
def test_gaps_of_every_length(bits, skip):
    weights = torch.zeros(skip + 2)
    weights[skip] = 5
    parts = Gap(bits=bits).encode(weights)
    assert torch.equal(Gap(bits=bits).decode(parts, (skip + 2,)), weights)
    assert parts["gaps"].numel() == -(-(skip // (2**bits - 1) + 1) * bits // 8)


def test_a_bitmap_of_gaps_at_ninety_percent_comes_near_the_entropy():
    weights = (torch.rand(1 << 20, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    bits_per_weight = Gap(bits=4).encode(weights)["gaps"].numel() * 8 / weights.numel()
    assert bits_per_weight == pytest.approx(0.504, abs=0.004)  # entropy 0.469, bitmask 1


def test_two_of_four_by_hand():
    weight = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]])
    parts = NOfM(n=2, m=4).encode(weight)
    # Patterns with two bits in increasing order: 0011 0101 0110 1001 1010 1100; the groups have ranks 0 and 5, base 6.
    assert parts["ranks"].tolist() == [0 + 5 * 6]
    assert parts["values"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (1, 16), (2, 16), (8, 16)])
def test_n_of_m_along_either_axis(n, m, axis):
    generator = torch.Generator().manual_seed(n * m)
    weight = torch.randn(32, 16, 3, generator=generator)
    groups = weight.movedim(axis, -1).unflatten(-1, (-1, m))
    groups.masked_fill_(torch.rand(groups.shape, generator=generator).argsort(-1) >= n, 0)
    codec = NOfM(n=n, m=m, axis=axis)
    parts = codec.encode(weight)
    assert torch.equal(codec.decode(parts, (32, 16, 3)), weight)
    per_word = codec.per_word
    assert comb(m, n) ** per_word <= 2**16 < comb(m, n) ** (per_word + 1)
    weight.movedim(axis, -1).unflatten(-1, (-1, m))[..., : n + 1] = 1
    assert codec.encode(weight) is None


def test_a_group_with_fewer_than_n_stores_its_earliest_zeros():
    parts = NOfM(n=2, m=4).encode(torch.tensor([[0.0, 0.0, 0.0, 5.0]]))
    assert parts["values"].tolist() == [0.0, 5.0]


def test_blocks_by_hand():
    weight = torch.zeros(4, 4)
    weight[2:, 2:] = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    parts = Block(rows=2, columns=2).encode(weight)
    assert parts["mask"].tolist() == [0b1000]
    assert parts["values"].tolist() == [1, 2, 3, 0]


def test_kernels_filters_and_input_channels_are_blocks():
    weight = torch.ones(4, 6, 3, 3)
    weight[1], weight[:, 2], weight[3, 3] = 0, 0, 0
    for codec in Block.variants((4, 6, 3, 3)):
        assert torch.equal(codec.decode(codec.encode(weight), (4, 6, 3, 3)), weight)
    kernels = Block(rows=1, columns=1, taps=9).encode(weight)
    assert kernels["values"].numel() == (24 - 6 - 3 - 1) * 9


BAD = {
    "mask too short": (Bitmask(), {"mask": torch.tensor([1], dtype=torch.uint8), "values": torch.ones(1)}),
    "mask of another type": (Bitmask(), {"mask": torch.tensor([1, 0]), "values": torch.ones(1)}),
    "wrong popcount": (Bitmask(), {"mask": torch.tensor([3, 0], dtype=torch.uint8), "values": torch.ones(1)}),
    "padding set": (Bitmask(), {"mask": torch.tensor([0, 128], dtype=torch.uint8), "values": torch.ones(1)}),
    "a stored zero": (Bitmask(), {"mask": torch.tensor([1, 0], dtype=torch.uint8), "values": torch.zeros(1)}),
    "values in a square": (Bitmask(), {"mask": torch.tensor([1, 0], dtype=torch.uint8), "values": torch.ones(1, 1)}),
    "gaps too far": (Gap(bits=8), {"gaps": torch.tensor([12], dtype=torch.uint8), "values": torch.ones(1)}),
    "more gaps than values": (Gap(bits=8), {"gaps": torch.tensor([1, 1], dtype=torch.uint8), "values": torch.ones(1)}),
    "gaps that end in nothing": (
        Gap(bits=8),
        {"gaps": torch.tensor([255], dtype=torch.uint8), "values": torch.ones(0)},
    ),
    "columns in the wrong order": (
        Csr(),
        {
            "counts": torch.tensor([2, 0, 0], dtype=torch.uint8),
            "columns": torch.tensor([1, 0], dtype=torch.uint8),
            "values": torch.ones(2),
        },
    ),
    "column outside": (
        Csr(),
        {
            "counts": torch.tensor([1, 0, 0], dtype=torch.uint8),
            "columns": torch.tensor([4], dtype=torch.uint8),
            "values": torch.ones(1),
        },
    ),
    "counts that do not add up": (
        Csr(),
        {
            "counts": torch.tensor([4, 0, 0], dtype=torch.uint8),
            "columns": torch.tensor([1], dtype=torch.uint8),
            "values": torch.ones(1),
        },
    ),
    "a rank too large": (NOfM(), {"ranks": torch.tensor([65535], dtype=torch.uint16), "values": torch.ones(6)}),
    "a rank after the last group": (
        NOfM(),
        {"ranks": torch.tensor([6**3], dtype=torch.uint16), "values": torch.ones(6)},
    ),
    "values missing": (NOfM(), {"ranks": torch.tensor([0], dtype=torch.uint16), "values": torch.ones(5)}),
    "not divisible": (NOfM(n=1, m=8), {"ranks": torch.tensor([0], dtype=torch.uint16), "values": torch.ones(1)}),
    "blocks not divisible": (
        Block(rows=2, columns=2),
        {"mask": torch.tensor([0], dtype=torch.uint8), "values": torch.ones(0)},
    ),
    "half a block": (Block(rows=3), {"mask": torch.tensor([1], dtype=torch.uint8), "values": torch.ones(2)}),
    "another shape": (Dense(), {"data": torch.ones(4, 3)}),
    "a bool of 2": (Dense(), {"data": torch.full((3, 4), 2, dtype=torch.uint8).view(torch.bool)}),
}


@pytest.mark.parametrize("what", BAD)
def test_contradictions_are_refused(what):
    codec, parts = BAD[what]
    with pytest.raises(BadFile):
        codec.decode(parts, (3, 4))


@pytest.mark.parametrize("bad", [{"n": 4}, {"m": 3}, {"axis": 2}, {"n": 0}])
def test_patterns_that_do_not_exist(bad):
    with pytest.raises(BadFile):
        replace(NOfM(), **bad)
