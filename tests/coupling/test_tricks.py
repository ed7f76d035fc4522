"""narrow == mask, on every structural trick, for random units: the invariant that the whole of narrowing stands on."""

import copy
import os
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coupling.tricks import NAMES, difference, draw_masks, inputs, make, masked
from torch import nn

import secateur as sc
from secateur.coupling.running import run, tensors_of

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


@cache
def coupled(name):
    model = make(name)
    return model, sc.couple(model, inputs(name))


def narrowed(name, fraction=0.5, seed=0):
    model, coupling = coupled(name)
    masks = draw_masks(model, coupling.groups(), fraction, seed)
    return model, masks, sc.narrow(model, masks, inputs(name), coupling=coupling)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(fraction=st.floats(0.15, 0.9), seed=st.integers(0, 1 << 16))
def test_narrowed_equals_masked_for_random_units(name, fraction, seed):
    model, coupling = coupled(name)
    masks = draw_masks(model, coupling.groups(), fraction, seed)
    if masks.kept == masks.total or not runs_in_torch(model, masks):
        return
    thin = sc.narrow(model, masks, inputs(name), coupling=coupling)
    assert difference(masked(model, masks), thin, inputs(name, batch=3, seed=seed + 1)) <= TOLERANCE


def runs_in_torch(model, masks):
    """PyTorch's LSTM takes a projection as wide as its hidden state for no projection at all, and fails."""
    for path, layer in model.named_modules():
        if isinstance(layer, nn.LSTM) and layer.proj_size:
            projection = masks[f"{path}.weight_hr_l0"]
            return bool(projection.any(1).sum() < projection.any(0).sum())
    return True


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lstm_projected"])
def test_inside_heads_and_groups_too(name):
    model, example = make(name), inputs(name)
    coupling = sc.couple(model, example, heads="inside")
    masks = draw_masks(model, coupling.groups(), 0.5, seed=1)
    if masks.kept < masks.total:
        thin = sc.narrow(model, masks, example, coupling=coupling)
        assert difference(masked(model, masks), thin, inputs(name, batch=3, seed=4)) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_half_of_every_group_leaves(name):
    model, _, thin = narrowed(name)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, thin))
    assert after <= 0.75 * before
    assert type(thin) is type(model)
    shapes = [[t.shape for t in tensors_of(run(m, inputs(name)))] for m in (model, thin)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
def test_narrowed_models_train(name):
    _, _, thin = narrowed(name)
    thin = copy.deepcopy(thin).train()
    optimizer = torch.optim.AdamW(thin.parameters(), 1e-3)
    sum(t.float().square().sum() for t in tensors_of(run(thin, inputs(name)))).backward()
    unused = [n for n, p in thin.named_parameters() if p.grad is None or p.grad.shape != p.shape]
    assert unused == []
    optimizer.step()
    thin.eval()
    assert all(torch.isfinite(t).all() for t in tensors_of(run(thin, inputs(name))))


@pytest.mark.parametrize("name", NAMES)
def test_copies_pickles_and_state_dicts_of_narrowed_models(name):
    model, _, thin = narrowed(name)
    copies = [copy.deepcopy(thin)]
    if "weight_norm" not in name:  # PyTorch does not pickle parametrised modules
        copies.append(pickle.loads(pickle.dumps(thin)))
    _, _, other = narrowed(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(thin.state_dict())
    for again in [*copies, other]:
        assert difference(thin, again, inputs(name, seed=3)) == 0
    assert difference(model, make(name), inputs(name)) == 0  # and the original is what it was


@pytest.mark.parametrize("name", NAMES)
def test_masks_and_plan_on_original_names(name):
    """`prune` reports masks on the names and shapes of the original; applied there, they give what the narrowed one computes."""
    model, _ = coupled(name)
    pruned = sc.prune(
        model, "magnitude", granularity="channel", sparsity=0.4, scope="layer", example_inputs=inputs(name)
    )
    own = dict(model.named_parameters())
    assert set(pruned.masks) <= set(own)
    assert all(mask.shape == own[n].shape for n, mask in pruned.masks.items())
    assert difference(masked(model, pruned.masks), pruned.model, inputs(name, seed=5)) <= TOLERANCE


def test_every_trick_is_saved_and_loads_into_the_original_class_in_another_process(tmp_path):
    for name in NAMES:
        _, _, thin = narrowed(name, 0.3, seed=2)
        sc.save(thin, tmp_path / f"{name}.safetensors")
        fresh = [t.detach() for t in tensors_of(run(thin, inputs(name, seed=9)))]
        torch.save(fresh, tmp_path / f"{name}.pt")
    program = """
import sys, torch, secateur as sc
from tests.coupling.tricks import NAMES, inputs, make
from secateur.coupling.running import run, tensors_of
for name in NAMES:
    loaded = sc.load(f"{sys.argv[1]}/{name}.safetensors", make(name, seed=1)).model.eval()
    wanted = torch.load(f"{sys.argv[1]}/{name}.pt")
    found = tensors_of(run(loaded, inputs(name, seed=9)))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(wanted, found, strict=True)), name
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
