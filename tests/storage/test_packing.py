"""Packing chooses the smallest format, and its sizes are those of the files."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from tests.formats.test_formats import every, same_bits, tensors

from secateur.errors import WrongModel
from secateur.packing.pack import codecs, dense_nbytes, pack, packed_nbytes, unpack
from secateur.packing.rounding import restored, rounded

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.dictionaries(NAMES, tensors(), max_size=5), NAMES)
def test_nbytes_is_the_size_of_the_file_and_nothing_is_lost(named, model):
    packed = pack(named, model=model, threads=1)
    written = len(save(dict(packed.parts), packed.metadata))
    assert packed.nbytes == written == packed_nbytes(named, model=model, threads=1)
    again = unpack(packed)
    assert again.keys() == named.keys()
    assert all(same_bits(again[name], named[name]) for name in named)


@given(st.dictionaries(NAMES, tensors(), max_size=5))
def test_dense_nbytes_is_the_size_of_the_plain_file(named):
    assert dense_nbytes(named) == len(save({name: tensor.clone() for name, tensor in named.items()}))


@given(tensors())
def test_no_format_would_have_been_smaller(tensor):
    packed = pack({"w": tensor}, threads=1)
    chosen = sum(part.nbytes for part in packed.parts.values())
    for codec in every(tuple(tensor.shape)):
        parts = codec.encode(tensor)
        if parts is not None:
            other = sum(part.nbytes for part in parts.values())
            assert chosen <= other + (200 if chosen == tensor.nbytes else 0), (
                codec
            )  # leaving dense has to pay for its entry


def test_what_is_chosen():
    generator = torch.Generator().manual_seed(0)

    def chosen(weight):
        return (
            pack({"w": weight}).document.tensors["w"].format if "w" in pack({"w": weight}).document.tensors else "dense"
        )

    weight = torch.randn(256, 256, generator=generator)
    drawn = torch.rand(256, 256, generator=generator)
    assert chosen(weight) == "dense"
    assert chosen(weight.masked_fill(drawn < 0.5, 0)) == "bitmask"
    assert chosen(weight.masked_fill(drawn < 0.9, 0)) == "gap"
    assert chosen(weight.masked_fill(drawn < 0.99, 0)) == "gap"
    assert chosen(weight.masked_fill(drawn.view(256, 64, 4).argsort(-1).view(256, 256) < 2, 0)) == "n_of_m"
    assert chosen(weight.view(64, 4, 256).masked_fill(drawn[:64, None] < 0.7, 0).view(256, 256)) == "block"
    assert chosen(torch.nn.functional.pad(weight[:1], (0, 0, 0, 9999))) in ("csr", "block", "gap")


def test_tied_tensors_are_stored_once():
    weight = torch.randn(64, 64)
    packed = pack({"a": weight, "b": weight, "c": weight.t()})
    assert set(packed.parts) == {"a", "c"}
    assert packed.document.tied == {"b": "a"}


def test_fp16_and_int8_make_it_smaller_and_stay_near():
    weight, bias = torch.randn(64, 128), torch.randn(64)
    whole = pack({"w": weight, "b": bias})
    for kind, part, bound in (("fp16", 2, 2.0**-10), ("bf16", 2, 2.0**-7), ("int8", 4, 1 / 254)):
        packed = pack({"w": weight, "b": bias}, dtype=kind)
        assert packed.nbytes < whole.nbytes / part + 800
        again = unpack(packed)
        assert again["w"].dtype == torch.float32
        assert float((again["w"] - weight).abs().max()) <= bound * float(weight.abs().max())
        assert kind != "int8" or torch.equal(again["b"], bias)  # vectors stay as they are


def test_int8_by_hand():
    values, scales = rounded(torch.tensor([[-12.7, 0.04, 5.0], [0.0, 0.0, 0.0]]), "int8", "w")
    assert values.tolist() == [[-127, 0, 50], [0, 0, 0]]
    assert scales[0].item() == pytest.approx(0.1)
    assert restored(values, scales, torch.float32)[0].tolist() == pytest.approx([-12.7, 0.0, 5.0])


@pytest.mark.parametrize(
    ("weight", "kind", "said"),
    [
        (torch.tensor([[1e6]]), "fp16", "'w' holds 1e\\+06"),
        (torch.tensor([[float("nan")]]), "int8", "'w' holds NaN"),
        (torch.ones(1), "int4", "int4"),
    ],
)
def test_what_cannot_be_rounded_is_refused(weight, kind, said):
    with pytest.raises(WrongModel, match=said):
        pack({"w": weight}, dtype=kind)


def test_sparse_and_meta_tensors_are_refused_by_name():
    for bad in (torch.eye(3).to_sparse(), torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex128)):
        with pytest.raises(WrongModel, match="'w'"):
            pack({"w": bad})


def test_the_folder_is_the_registry():
    assert set(codecs()) == {"bitmask", "block", "csr", "dense", "gap", "n_of_m"}
