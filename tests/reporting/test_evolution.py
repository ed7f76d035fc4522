"""The page of a co-evolved pair: pictures inside, names escaped, generations as a table."""

import base64
import re

import pytest
import torch
from torch import nn

from secateur.errors import WrongModel
from secateur.masks import Masks
from secateur.report import Latency, Profile, Pruned, Report
from secateur.reporting import evolution

SIDE = {
    "best": 1.5,
    "mean": 2.0,
    "aware": 0.3,
    "cycle": 0.1,
    "share": 0.25,
    "evaluations": 4,
    "remembered": 0,
    "lost": 0,
}


def pruned(sides=2):
    history = [{"generation": k, "seconds": 1.0, "sides": [SIDE] * sides} for k in (1, 2)]
    timed = Latency(median_ms=8.0, low_ms=7.0, high_ms=9.0, runs=5, threads=1)
    before = Profile(model="Net", params=100, nonzeros=100, macs=1000, latency=timed)
    after = Profile(
        model="Net",
        params=25,
        nonzeros=25,
        macs=200,
        latency=Latency(median_ms=2.0, low_ms=1.9, high_ms=2.1, runs=5, threads=1),
    )
    report = Report(before=before, after=after, method="co-evolved", settings={"history": history}, notes=("a note",))
    return Pruned(nn.Identity(), Masks(), report)


def test_a_pair(tmp_path):
    x = torch.zeros(3, 3, 4, 5)
    file = evolution.write(
        tmp_path / "pair.html", [pruned(), pruned()], [nn.Identity(), nn.Tanh()], [x, x + 0.5],
        names=("<orange>", "lemon"), quality={"dense": {"KID": 0.25}, "small": {"KID": 0.5, "other": "x"}},
    )  # fmt: skip
    text = file.read_text()
    pictures = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    assert len(pictures) == 2 * 4 * 3  # directions, rows, images
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[12]
    assert "&lt;orange&gt; → lemon" in text
    assert "<orange>" not in text
    for words in ("4.0x", "5.0x", "reconstructed", "0.25", "a note", "2 generations as a table", "<svg"):
        assert words in text


def test_one_generator_has_nothing_reconstructed():
    text = evolution.page([pruned(1)], [nn.Identity()], [torch.zeros(2, 1, 4, 4)])
    assert "<span>reconstructed</span>" not in text
    assert text.count("data:image/png") == 6


def test_numbers_must_agree():
    with pytest.raises(WrongModel, match="1 dense"):
        evolution.page([pruned(), pruned()], [nn.Identity()], [torch.zeros(1, 3, 2, 2)] * 2)
