"""The picture and the tables of coupled channels: true to the coupling, escaped, and kept with the receipt."""

import json
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.columns import compact, expand
from secateur.coupling.census import groups_of, held_of
from secateur.report import ChannelGroup, HeldChannels, Profile, Report
from secateur.reporting import groups, html
from secateur.reporting.rails import lay_out, picture


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 8, 1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.outer(self.inner(x).relu())).mean((2, 3)))


X = torch.zeros(1, 3, 4, 4)


@pytest.fixture(scope="module")
def pruned():
    torch.manual_seed(0)
    return sc.prune(Block(), sparsity=0.5, granularity="channel", scope="layer", example_inputs=X)


def test_the_census_by_hand():
    net = Block()
    coupling = sc.couple(net, X)
    stream, inner = groups_of(coupling, net)
    assert (stream.makers, stream.readers, stream.others) == (("stem", "outer"), ("inner", "head"), ("norm",))
    assert (inner.makers, inner.readers, inner.others) == (("inner",), ("outer",), ())
    assert (stream.units, stream.kept, stream.span) == (8, 8, 1)
    assert (
        stream.params == 24 + 8 + 16 + 48 + 48 + 40
    )  # stem and its bias, norm, outer's rows, what inner and head read
    assert inner.params == 48 + 48
    assert held_of(coupling, net) == (
        HeldChannels(reason="reaches the model's output (`output`)", layers=("head",), channels=(5,)),
    )


def test_heads_span_channels_and_reasons_are_counted():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    coupling = sc.couple(layer, torch.zeros(1, 5, 32))
    head, hidden = groups_of(coupling, layer)
    assert (head.kind, head.units, head.span) == ("head", 4, 8)
    assert (head.makers, head.readers, head.others) == (("self_attn",), ("self_attn.out_proj",), ())
    assert (hidden.kind, hidden.units) == ("hidden", 64)
    held = held_of(coupling, layer)
    assert sum(sum(one.channels) for one in held) == 64  # what out_proj and linear2 add to the stream
    assert {name for one in held for name in one.layers} == {"self_attn.out_proj", "linear2"}


def test_a_channel_of_many_tensors_of_one_weight_counts_its_weights_once():
    net = nn.LSTM(4, 6)
    (group,) = groups_of(sc.couple(Reader(net), torch.zeros(3, 1, 4)), Reader(net))
    assert group.params == 24 * 4 + 24 * 6 + 48 + 2 * 6  # both matrices whole, both biases, what the reader reads
    assert (group.units, group.span) == (6, 1)


class Reader(nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent, self.out = recurrent, nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.recurrent(x)[0])


def test_the_receipt_keeps_groups_and_old_receipts_load(pruned):
    report = pruned.report
    assert [(group.units, group.kept) for group in report.groups] == [(8, 4), (6, 3)]
    assert Report.from_dict(json.loads(report.to_json())) == report
    assert Report.from_dict(expand(compact(report.to_dict()))).groups == report.groups
    old = report.to_dict()
    del old["groups"], old["held"]
    assert Report.from_dict(old).groups == ()


def test_a_saved_file_keeps_them_too(pruned, tmp_path):
    path = tmp_path / "thin.safetensors"
    sc.save(pruned, path)
    assert sc.load(path, Block()).report.groups == pruned.report.groups


def test_the_page_of_the_receipt_shows_them(pruned):
    said = html.page(pruned.report)
    assert "Which channels leave together" in said
    assert "8 → 4" in said
    assert "reaches the model&#39;s output" in said
    small = Profile(model="Net", params=1, nonzeros=1)
    assert "Which channels leave together" not in html.page(Report(before=small, after=small))


def test_the_picture_is_one_proper_drawing_with_every_layer(pruned):
    svg = picture(pruned.report.groups, pruned.report.held, ["stem", "norm", "inner", "outer", "head"])
    texts = ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]
    assert [text for text in texts if text in ("stem", "inner", "outer", "head")] == ["stem", "inner", "outer", "head"]
    assert "8 → 4" in texts
    assert "6 → 3" in texts


def test_names_are_escaped_and_long_networks_are_cut_off():
    found = [
        ChannelGroup(name=f"<b>{i}", units=2, kept=2, makers=(f"<b>{i}",), readers=(f"<b>{i + 1}",)) for i in range(90)
    ]
    said = groups.page("<i>Net", found)
    assert "<b>" not in said
    assert "<i>" not in said
    assert "31 more" in said  # 91 layers, 60 of them in the picture


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=20))
def test_rails_in_one_column_never_touch(ends):
    found = [ChannelGroup(name=str(i), makers=(str(a),), readers=(str(b),)) for i, (a, b) in enumerate(ends)]
    rails = lay_out(found, {str(row): row for row in range(31)})
    assert len(rails) == len(found)
    for i, one in enumerate(rails):
        for other in rails[:i]:
            mine, theirs = one.makers + one.readers, other.makers + other.readers
            apart = max(mine) < min(theirs) or max(theirs) < min(mine)
            assert one.column != other.column or apart
