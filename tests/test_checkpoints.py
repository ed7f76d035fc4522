"""Checkpoints come back as they were, and damage is noticed."""

import pytest
import torch

from secateur.checkpoints import read_checkpoint, write_checkpoint
from secateur.errors import BadFile


def test_a_tree_comes_back(tmp_path):
    tree = {
        "a": [1, 2.5, None, "x", True],
        3: {"t": torch.arange(4), "same": [torch.ones(2, 2, dtype=torch.float64)]},
        "e": {},
        "inf": float("inf"),
    }
    write_checkpoint(tmp_path / "deep" / "c.safetensors", tree)
    found = read_checkpoint(tmp_path / "deep" / "c.safetensors")
    assert {k: v for k, v in found.items() if k != 3} == {k: v for k, v in tree.items() if k != 3}
    assert torch.equal(found[3]["t"], tree[3]["t"])
    assert found[3]["same"][0].dtype == torch.float64


def test_an_optimizer_comes_back(tmp_path):
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    write_checkpoint(tmp_path / "c", optimizer.state_dict())
    other = torch.optim.Adam(torch.nn.Linear(2, 1).parameters())
    other.load_state_dict(read_checkpoint(tmp_path / "c"))
    assert other.state_dict()["param_groups"][0]["betas"] in ((0.9, 0.999), [0.9, 0.999])
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_damage_and_strangers_are_refused(tmp_path):
    (tmp_path / "c").write_bytes(b"12345678 nothing of the kind")
    with pytest.raises(BadFile, match="no checkpoint"):
        read_checkpoint(tmp_path / "c")
    with pytest.raises(TypeError, match="cannot hold"):
        write_checkpoint(tmp_path / "d", {"model": torch.nn.Linear(1, 1)})
    assert not (tmp_path / "d").exists()
