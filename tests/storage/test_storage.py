"""A pruned model comes back from its file: weights, buffers, ties, masks, receipt; and the file is written whole or not at all."""

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from tests.storage.nets import Net, pruned, same_state
from torch import nn

import secateur as sc
from secateur.errors import BadFile, WrongModel
from secateur.packing.document import Document, Entry
from secateur.packing.pack import METADATA_KEY, Packed, dense_nbytes, packed_nbytes
from secateur.storage import inspect, is_ours, load, read_tensors, save
from secateur.storage import saving as saving_module
from secateur.storage.saving import packed_model

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny.safetensors"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_everything_comes_back(file, sparsity):
    before = pruned(sparsity)
    save(before, file)
    fresh = Net()
    after = load(file, fresh)
    assert after.model is fresh
    assert same_state(after.model, before.model)
    assert after.masks == before.masks
    assert after.report == before.report
    assert after.model.head.weight is after.model.embed.weight
    assert file.stat().st_size == packed_model(before).nbytes == inspect(file).nbytes


def test_nbytes_of_a_bare_model_is_what_the_receipt_computes(file):
    model = pruned().model
    save(model, file)
    assert file.stat().st_size == packed_nbytes(model.state_dict(), model="Net")
    plain = file.with_name("plain.safetensors")
    safetensors.torch.save_file({n: t for n, t in model.state_dict().items() if n != "head.weight"}, plain)
    assert plain.stat().st_size == dense_nbytes(model.state_dict())


def test_masks_are_kept_where_they_differ_from_zeros(file):
    before = pruned()
    masks = {name: mask.clone() for name, mask in before.masks.items()}
    masks["conv.weight"][0] = True  # kept, and zero by chance
    masks["gone.weight"] = torch.rand(6, 4) < 0.5  # of the original model; not in this one
    before = replace(before, masks=sc.Masks(masks))
    save(before, file)
    assert load(file, Net()).masks == before.masks
    assert set(inspect(file).masked) == set(masks)
    assert "conv.weight:mask" not in read_tensors(file)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_rounded_values_come_back_near_with_the_same_masks(file, dtype):
    before = pruned()
    save(before, file, dtype=dtype)
    after = load(file, Net())
    assert after.masks == before.masks
    assert after.model.conv.weight.dtype == torch.float32
    assert torch.allclose(after.model.conv.weight, before.model.conv.weight, atol=0.02)
    assert file.stat().st_size == packed_model(before, dtype=dtype).nbytes


def test_deepcopies_and_pickles_of_what_was_loaded(file):
    save(pruned(), file)
    after = load(file, Net())
    for again in (copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
        assert again.masks == after.masks
        assert same_state(again.model, after.model)


def test_tied_weights_are_stored_once_and_buffers_as_the_state_says(file):
    save(pruned(), file)
    described = inspect(file)
    names = {tensor.name for tensor in described.tensors}
    assert described.tied == {"head.weight": "embed.weight"}
    assert {"steps", "norm.running_var", "norm.num_batches_tracked"} <= names
    assert not {"head.weight", "scratch"} & names


def test_ties_are_about_the_model_not_the_file(file):
    class Untied(Net):
        def __init__(self):
            super().__init__()
            self.head.weight = nn.Parameter(self.embed.weight.detach().clone())

    save(pruned(), file)
    untied = load(file, Untied()).model
    assert torch.equal(untied.head.weight, untied.embed.weight)
    save(untied, file)
    assert same_state(load(file, Net()).model, untied)


def test_a_plain_file_loads_into_a_model(file):
    model = pruned(0.7).model
    safetensors.torch.save_model(model, file)  # drops one name of the tied pair
    fresh = load(file, Net())
    assert same_state(fresh.model, model)
    assert not fresh.masks
    assert fresh.report.notes == ("the file holds no receipt",)
    assert fresh.report.after.nonzeros == sum(int(p.count_nonzero()) for p in model.parameters())
    assert not is_ours(file)
    assert not inspect(file).ours


def test_inspect_describes_without_decoding(file):
    save(pruned(0.9), file)
    described = inspect(file)
    embed = next(tensor for tensor in described.tensors if tensor.name == "embed.weight")
    assert (embed.format, embed.dtype, embed.shape, embed.dense_nbytes) == ("gap", "F32", (40, 16), 2560)
    assert embed.density == pytest.approx(0.1, abs=0.05)
    assert described.model == "Net"
    assert described.report["method"].startswith("one-shot")
    assert described.ours
    assert is_ours(file)


def test_half_models_load_into_wider_ones_only(file):
    half = Net(seed=2).half()
    save(half, file)
    assert torch.equal(load(file, Net()).model.conv.weight, half.conv.weight.float())
    save(Net(seed=2), file)
    with pytest.raises(WrongModel, match=r"'conv.weight' is torch.float32 in the file and torch.float16 in the model"):
        load(file, Net().half())


def test_a_model_that_does_not_fit_is_refused_by_names_and_left_alone(file):
    save(pruned(), file)
    other = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 5), "extra": nn.Linear(2, 2)})
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(WrongModel) as error:
        load(file, other)
    said = str(error.value)
    for part in (
        "lacks 'extra.weight'",
        "also holds",
        "'steps'",
        "'conv.weight' has shape [8, 3, 3, 3]",
        "[8, 3, 5, 5]",
    ):
        assert part in said
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_state_that_is_no_tensor_is_refused(file):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(WrongModel, match="'_extra_state' is dict"):
        save(Odd(2, 2), file)
    with pytest.raises(WrongModel, match="no shape yet"):
        save(nn.LazyLinear(3), file)
    with pytest.raises(WrongModel, match="meta"):
        save(Net(seed=1), file)
        load(file, Net().to("meta"))
    assert [found.name for found in file.parent.iterdir()] == ["m.safetensors"]


def test_a_failure_leaves_the_old_file_and_nothing_else(file, monkeypatch):
    save(pruned(0.5), file)
    old = file.read_bytes()

    def half_written(parts, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving_module, "save_file", half_written)
    with pytest.raises(OSError, match="No space left"):
        save(pruned(0.9), file)
    assert file.read_bytes() == old
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_decides_who_may_read(file, umask):
    before = os.umask(umask)
    try:
        save(nn.Linear(2, 2), file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_link_stays_a_link(file, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(file)
    save(nn.Linear(2, 2), link)
    assert link.is_symlink()
    assert is_ours(file)


def test_another_process_loads_it(file):
    before = pruned()
    save(before, file)
    script = (
        "import sys, secateur.storage as s; from tests.storage.nets import Net;"
        "p = s.load(sys.argv[1], Net()); print(p.masks.kept, p.model.embed.weight.detach().double().sum().item())"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-c", script, file], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == [str(before.masks.kept), str(before.model.embed.weight.detach().double().sum().item())]


def test_no_pickle_and_any_reader_sees_the_dense_tensors(file):
    model = pruned().model
    save(model, file)
    with safe_open(file, "pt") as plain:
        assert torch.equal(plain.get_tensor("norm.running_var"), model.norm.running_var)


def test_random_state_and_threads_stay(file):
    model, fresh = pruned(), Net()
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    save(model, file, dtype="int8")
    load(file, fresh)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def tiny() -> Packed:
    """One tensor in every format, written out by hand in ``docs/file-format.md``."""
    parts = {
        "bias": torch.tensor([0.5, -0.5]),
        "b:mask": torch.tensor([0b1010], dtype=torch.uint8),
        "b:values": torch.tensor([7.0, 5.0]),
        "g:gaps": torch.tensor([0xF2], dtype=torch.uint8),
        "g:values": torch.tensor([3.0]),
        "c:counts": torch.tensor([1, 0], dtype=torch.uint8),
        "c:columns": torch.tensor([2], dtype=torch.uint8),
        "c:values": torch.tensor([9.0]),
        "n:ranks": torch.tensor([30], dtype=torch.uint16),
        "n:values": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "k:mask": torch.tensor([2], dtype=torch.uint8),
        "k:values": torch.tensor([6, 8], dtype=torch.int8),
        "k:scales": torch.tensor([0.5, 0.25]),
    }
    entries = {
        "b": Entry(format="bitmask", dtype="F32", shape=(4,)),
        "g": Entry(format="gap", dtype="F32", shape=(4,), options={"bits": 4}),
        "c": Entry(format="csr", dtype="F32", shape=(2, 3)),
        "n": Entry(format="n_of_m", dtype="F32", shape=(1, 8), options={"n": 2, "m": 4, "axis": 1}),
        "k": Entry(
            format="block", dtype="F32", shape=(2, 2), options={"rows": 2, "columns": 1, "taps": 1}, scaled=True
        ),
    }
    return Packed(parts=parts, document=Document(model="Tiny", tensors=entries, tied={"again": "b"}))


def test_golden_bytes(file):
    """The bytes of version 1. If this fails, old files are no longer what they were: raise the version instead."""
    packed = tiny()
    safetensors.torch.save_file(dict(packed.parts), file, metadata=packed.metadata)
    assert file.read_bytes() == GOLDEN.read_bytes()
    read = read_tensors(GOLDEN)
    assert {name: tensor.tolist() for name, tensor in read.items()} == {
        "bias": [0.5, -0.5],
        "b": [0, 7, 0, 5],
        "again": [0, 7, 0, 5],
        "g": [0, 0, 3, 0],
        "c": [[0, 0, 9], [0, 0, 0]],
        "n": [[1, 2, 0, 0, 0, 0, 3, 4]],
        "k": [[0, 3], [0, 2]],
    }


def test_expansion_has_a_limit(file):
    save(nn.ParameterDict({"w": nn.Parameter(torch.zeros(3000, 3000))}), file)
    with pytest.raises(BadFile, match=r"limit=36000000"):
        read_tensors(file)
    assert read_tensors(file, limit=36_000_000)["w"].count_nonzero() == 0
    assert load(file, nn.ParameterDict({"w": nn.Parameter(torch.ones(3000, 3000))})).model["w"].count_nonzero() == 0


def test_a_missing_file_and_a_folder_are_system_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "no", Net())
    with pytest.raises(IsADirectoryError):
        inspect(tmp_path)
    assert not is_ours(tmp_path / "no")


def test_a_newer_version_says_so(file):
    text = Document(version=99).to_json()
    safetensors.torch.save_file({"a": torch.ones(1)}, file, metadata={METADATA_KEY: text})
    with pytest.raises(BadFile, match=r"version 99 .* update Secateur"):
        inspect(file)
