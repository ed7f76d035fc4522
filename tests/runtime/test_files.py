"""Files of compiled models: they come back, and no damage gets through."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.engine_zoo import NETS, apart, example, sparse_
from torch.utils._pytree import tree_leaves

import secateur as sc
import secateur_engine

pytestmark = pytest.mark.skipif(not secateur_engine.available(), reason="the compiled engine is missing")
KINDS = ["squeezed", "depthwise", "lstm", "encoder", "strange", "reflected", "pools"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for kind in KINDS:
        make, said = NETS[kind]
        torch.manual_seed(0)
        model = sparse_(make())
        x = example(said)
        sc.compile(model, x, threads=1, stripes=2).save(folder / f"{kind}.sc")
        made[kind] = (folder / f"{kind}.sc", model, x)
    return made


@pytest.mark.parametrize("behind", [b"x", b"\0" * 64])
def test_bytes_behind_the_end_are_no_model(saved, tmp_path, behind):
    path, *_ = saved["squeezed"]
    (tmp_path / "longer.sc").write_bytes(path.read_bytes() + behind)
    with pytest.raises(secateur_engine.BadFile, match="longer than its header says"):
        secateur_engine.load(tmp_path / "longer.sc")


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back(saved, kind):
    path, model, x = saved[kind]
    with torch.no_grad():
        expected = model(x)
    assert apart(sc.runtime.load(path)(x), expected) <= 1e-5
    assert secateur_engine.read(path)[1][0].base is not None  # a view of the mapped file
    safetensors.numpy.load_file(path)  # the container is plain safetensors


def test_operations_of_torch_need_the_loader_that_has_torch(saved):
    path, _, x = saved["strange"]
    with pytest.raises(secateur_engine.EngineError, match="cumsum"):
        secateur_engine.load(path)(x.numpy())


@pytest.mark.parametrize("kind", KINDS)
@given(place=st.floats(0, 1), flips=st.integers(1, 255), many=st.integers(1, 8))
@settings(max_examples=25)
def test_damage_is_refused_or_harmless(saved, tmp_path_factory, kind, place, flips, many):
    path, _, x = saved[kind]
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    for k in range(many):
        at = int(place * (header - 1) + k * 37) % header
        data[at] ^= flips
    damaged = tmp_path_factory.getbasetemp() / "damaged.sc"
    damaged.write_bytes(bytes(data))
    assert _outcome(damaged, path, x) in ("refused", "harmless")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=25)
def test_programs_with_other_numbers_are_refused_or_harmless(saved, tmp_path_factory, kind, data):
    """A hostile program: any integer of any step becomes another one."""
    path, _, x = saved[kind]
    programs, arrays = secateur_engine.read(path)
    programs = json.loads(json.dumps(programs))
    one = programs["programs"][0]
    for _ in range(data.draw(st.integers(1, 3))):
        step = data.draw(st.sampled_from(one["steps"]))
        where, key = data.draw(st.sampled_from(list(_numbers(step)) or [(one, "arena")]))
        where[key] = data.draw(
            st.sampled_from([-1, 0, 1, 7, 64, where[key] + 1, where[key] - 1, where[key] * 2, 1 << 31, 1 << 62])
        )
    fresh = tmp_path_factory.getbasetemp() / "hostile.sc"
    secateur_engine.write(fresh, programs, [np.array(a) for a in arrays])
    assert _outcome(fresh, path, x) in ("refused", "harmless")


def _numbers(tree):
    places = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else []
    for key, leaf in places:
        if isinstance(leaf, int) and not isinstance(leaf, bool):
            yield tree, key
        else:
            yield from _numbers(leaf)


def _outcome(path, sound, x):
    """What reading and calling the file at ``path`` does, beside the sound one that it was made from."""
    good, before = sc.runtime.load(sound), x.clone()
    others = good.engine.programs[0].others  # torch itself says what it does not take
    expected = [] if others else tree_leaves(good(x))
    try:
        model = sc.runtime.load(path)
        found = [] if model.engine.programs[0].others else tree_leaves(model(x))
    except (sc.errors.SecateurError, secateur_engine.EngineError) as error:
        return "refused" if str(error) else "refused without a word"
    if not all(isinstance(y, torch.Tensor) for y in found):
        return f"gave {found}"
    if not torch.equal(x, before):
        return "wrote to its input"
    again = [] if others else tree_leaves(good(x))
    same = all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    return "harmless" if same else "spoilt another model"


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
def test_truncated_files(saved, tmp_path, cut):
    path, _, _ = saved["squeezed"]
    (tmp_path / "short.sc").write_bytes(path.read_bytes()[:cut])
    with pytest.raises(sc.errors.BadFile):
        sc.runtime.load(tmp_path / "short.sc")


def test_other_files_are_named(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, tmp_path / "plain.safetensors")
    with pytest.raises(sc.errors.BadFile, match=r"plain\.safetensors"):
        sc.runtime.load(tmp_path / "plain.safetensors")
