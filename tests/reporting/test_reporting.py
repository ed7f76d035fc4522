"""Receipts rendered: what is said is true, what a user wrote is escaped, and a crash leaves the old file."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import BadFile
from secateur.report import Latency, LayerProfile, Profile, Report
from secateur.reporting import html, json
from secateur.reporting.terminal import render_text
from secateur.reporting.verdict import nothing_removed, verdict
from secateur.reporting.wording import rows_of, short
from secateur.reporting.writing import write_text
from secateur.sensitivity import Sensitivity


def latency(median, spread=0.1):
    return Latency(median_ms=median, low_ms=median - spread, high_ms=median + spread, runs=50, threads=2)


def side(nonzeros, **more):
    layer = LayerProfile(name="fc", kind="Linear", shape=(10, 10), params=100, nonzeros=nonzeros)
    return Profile(model="Net", params=100, nonzeros=nonzeros, layers=(layer,), **more)


DENSE = side(100, macs=1000, nonzero_macs=1000, dense_bytes=480, packed_bytes=480, gzip_bytes=400, latency=latency(2))
SPARSE = side(10, macs=1000, nonzero_macs=100, dense_bytes=480, packed_bytes=120, gzip_bytes=100, latency=latency(2.05))
REPORT = Report(before=DENSE, after=SPARSE, method="one-shot")
SAME = Report(before=DENSE, after=DENSE)


def test_the_verdict_says_what_pays_and_what_does_not():
    said = verdict(REPORT)
    assert said[0] == "90.0 % of the non-zero parameters are gone: 100 became 10."
    assert said[1].startswith("On disk: 4.0x smaller with sc.save (120 B); 4.0x smaller after gzip of the plain file")
    assert "the plain file is as large as before" in said[1]
    assert said[2].startswith("90.0 % of its 1.00 k multiply-accumulates have a weight of zero")
    assert said[3] == "The zeros do not make it faster here (cpu, 2 threads): 0.98x, within noise."


@pytest.mark.parametrize("after", [DENSE, side(101), side(100)])
def test_nothing_removed_is_said_loudly_and_no_success_is_claimed(after):
    report = Report(before=DENSE, after=after)
    assert nothing_removed(report)
    assert verdict(report)[0].startswith("NOTHING WAS REMOVED")
    assert not any("smaller" in sentence for sentence in verdict(report))
    assert "NOTHING WAS REMOVED" in str(report)
    assert 'class="verdict alarm" role="alert"' in html.page(report)


@pytest.mark.parametrize(
    ("median", "said"),
    [(1.0, "It is faster here (cpu, 2 threads): 2.00x."), (4.0, "it is 2.00x slower.")],
)
def test_speed_is_claimed_only_beyond_the_spread(median, said):
    report = Report(before=DENSE, after=side(10, latency=latency(median)))
    assert any(sentence.endswith(said) for sentence in verdict(report))


def test_a_large_ratio_within_noise_is_not_claimed():
    report = Report(before=side(100, latency=latency(3, 2)), after=side(10, latency=latency(2, 2)))
    assert any("cannot be told: 1.50x is within noise" in sentence for sentence in verdict(report))


def test_missing_rules_make_macs_a_lower_bound():
    report = Report(before=DENSE, after=side(10, uncounted=("fc: my.op",)))
    assert any(
        "MACs are too low: 1 operation(s)" in sentence and "fc: my.op" in sentence for sentence in verdict(report)
    )


def test_controls_and_scores_are_told():
    report = Report(before=side(100, score=0.9), after=side(10, score=0.8), controls={"random": 0.3})
    assert "The score fell from 0.9000 to 0.8000." in verdict(report)
    assert "Control at the same sparsity, random: 0.3000." in verdict(report)


def test_rows_leave_out_what_nobody_measured():
    assert [row.label for row in rows_of(Report(before=side(9), after=side(9)))] == [
        "parameters",
        "non-zero parameters",
        "sparsity",
    ]
    half = Report(before=side(9), after=side(9, macs=5))
    assert ("MACs", "not measured", "5", "") in rows_of(half)


def test_the_table_is_plain_text_and_fits():
    text = render_text(REPORT)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 110
    assert re.search(r"non-zero parameters +100 +10 +10.0x fewer", text)


def test_long_models_are_folded_and_the_sum_is_kept():
    layers = tuple(LayerProfile(name=f"l{i}", kind="Linear", params=i, nonzeros=i) for i in range(1, 41))
    many = Profile(model="Deep", params=820, nonzeros=820, layers=layers)
    text = str(many)
    assert "l40" in text
    assert "l5 " not in text
    assert re.search(r"\.\.\. 20 smaller ones +210 +210", text)  # 1 + 2 + ... + 20


def test_the_end_of_a_long_name_is_what_shows():
    name = "backbone.encoder.layers.11.attention.q_proj"
    layer = LayerProfile(name=name, kind="A" * 40, shape=(4096, 4096, 3, 3), params=10**9, nonzeros=10**9, macs=10**9)
    text = str(Profile(model="Net", params=1, nonzeros=1, layers=(layer,)))
    assert "layers.11.attention.q_proj" in text
    assert max(map(len, text.splitlines())) <= 110


def test_names_that_look_like_markup_stay():
    layer = LayerProfile(name="[bold]a[/bold]", kind="Linear", params=1, nonzeros=1)
    assert "[bold]a[/bold]" in str(Profile(model="[red]Net", params=1, nonzeros=1, layers=(layer,)))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.links, self.ids = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        self.ids += [value for key, value in attrs if key == "id"]


@settings(max_examples=10)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_whatever_the_user_wrote_is_text(text):
    layer = LayerProfile(name=f"<script>{text}", kind="<b>", shape=(2,), params=2, nonzeros=1, macs=2, nonzero_macs=1)
    evil = Profile(model=f"<img src=x>{text}", params=2, nonzeros=1, layers=(layer,), macs=2, nonzero_macs=1)
    report = Report(
        before=evil, after=evil, method=f"<script>{text}", notes=(f"<iframe>{text}",), settings={text: "<b>"}
    )
    tags = Tags()
    tags.feed(html.page(report))
    assert not tags.names & {"script", "img", "iframe", "b", "link"}


def test_the_page_needs_no_network_and_its_drawings_are_sound():
    curves = Sensitivity(curves={"$a_b": ((0.5, 0.8), (0.9, float("nan")))}, dense=0.9, sizes={"$a_b": 9})
    page = html.page(REPORT, curves)
    tags = Tags()
    tags.feed(page)
    assert all(link.startswith("#") for link in tags.links)
    assert len(tags.ids) == len(set(tags.ids))
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", page)
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 3  # no layer here has MACs
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "$a_b" in page
    assert page == html.page(REPORT, curves)


def test_a_real_page_has_all_parts(tmp_path):
    pruned = sc.prune(nn.Sequential(nn.Linear(20, 10)), sparsity=0.5, example_inputs=torch.zeros(1, 20))
    found = html.write(pruned.report, tmp_path / "page.html")
    page = found.read_text()
    for heading in ("Before and after", "Where the zeros are", "Where the work is", "Layers"):
        assert f">{heading}</h2>" in page
    assert page.count("<svg") == 3


def test_json_round_trip(tmp_path):
    assert json.read(json.write(REPORT, tmp_path / "r.json")) == REPORT
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadFile, match="is not JSON"):
        json.read(tmp_path / "bad.json")


def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    goal = write_text(tmp_path / "a.txt", "old")

    def fail(*_):
        raise OSError

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError):
        write_text(goal, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert goal.read_text() == "old"


@given(st.integers(0, 10**14))
def test_short_numbers_are_within_half_a_percent(number):
    text, _, unit = short(number).partition(" ")
    assert float(text) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit] == pytest.approx(number, rel=5.1e-3)
