"""Sensitivity: exact points, an untouched model, and an allocation that is optimal on the curves it is given."""

import copy
import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.allocations.sensitive import Sensitive, hull
from secateur.errors import BadFile, BadSparsity, NeedsTask, UnknownName
from secateur.sensitivity import Sensitivity, sensitivity
from secateur.units import Table, Units


def model():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    net[0].weight.data.copy_(torch.arange(1.0, 17).view(4, 4))
    net[1].weight.data.copy_(torch.arange(1.0, 9).view(2, 4))
    return net


def kept(net):
    return float(sum(p.count_nonzero() for p in net.parameters()))


def test_points_by_hand():
    found = sensitivity(model(), sc.Task(evaluate=kept), sparsities=[0.75, 0.5])
    assert found.dense == 24
    assert found.curves == {"0.weight": ((0.5, 16.0), (0.75, 12.0)), "1.weight": ((0.5, 20.0), (0.75, 18.0))}
    assert found.harm("0.weight") == ((0.5, 8.0), (0.75, 12.0))
    assert found.sizes == {"0.weight": 16, "1.weight": 8}


def test_the_loss_counts_the_other_way():
    task = sc.Task([torch.ones(1, 4)] * 3, loss=lambda net, x: -net(x).sum())
    found = sensitivity(model(), task, sparsities=[0.5], metric="loss")
    assert all(harm > 0 for name in found.curves for _, harm in found.harm(name))


def test_the_model_is_untouched_and_one_copy_serves_all(monkeypatch):
    net, copies = model().train(), []
    before = copy.deepcopy(net.state_dict())
    once = copy.deepcopy
    monkeypatch.setattr(copy, "deepcopy", lambda what, *memo: copies.append(type(what)) or once(what, *memo))
    sensitivity(net, sc.Task(evaluate=kept))
    assert copies.count(nn.Sequential) == 1
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_weights_come_back_bit_for_bit_between_points():
    net, seen = model(), []
    net[0].weight.data[0, 0] = float("nan")
    net[0].weight.data[0, 1] = -0.0
    sensitivity(net, sc.Task(evaluate=lambda m: seen.append(m[0].weight.detach().clone()) or 0.0), method=_ByIndex())
    last = seen[-1].view(torch.int32)  # the other layer is pruned here, so this one is whole again
    assert torch.equal(last, net[0].weight.view(torch.int32))


class _ByIndex:
    def __call__(self, net, targets, task=None):
        return sc.Scores(
            {
                name: torch.arange(net.get_parameter(name).numel()).view_as(net.get_parameter(name)).float()
                for name in targets
            }
        )


def test_progress_names_every_point():
    told = []
    sensitivity(model(), sc.Task(evaluate=kept), sparsities=[0.5, 0.9], on_progress=lambda *at: told.append(at))
    assert told == [(0, 4, "0.weight"), (1, 4, "0.weight"), (2, 4, "1.weight"), (3, 4, "1.weight")]


def test_a_pattern_has_only_its_own_sparsity():
    found = sensitivity(model(), sc.Task(evaluate=kept), granularity="1:4")
    assert found.curves == {"0.weight": ((0.75, 12.0),), "1.weight": ((0.75, 18.0),)}


def test_ignored_layers_have_no_curve():
    assert list(sensitivity(model(), sc.Task(evaluate=kept), ignore=["0"]).curves) == ["1.weight"]


@pytest.mark.parametrize(
    ("task", "options", "error"),
    [
        (sc.Task(), {}, NeedsTask),
        (sc.Task(evaluate=kept), {"metric": "loss"}, NeedsTask),
        (sc.Task(evaluate=kept), {"metric": "speed"}, UnknownName),
        (sc.Task(evaluate=kept), {"sparsities": [50]}, BadSparsity),
    ],
)
def test_what_cannot_be_measured_is_refused(task, options, error):
    with pytest.raises(error):
        sensitivity(model(), task, **options)


def test_round_trip_through_json():
    found = sensitivity(model(), sc.Task(evaluate=lambda net: float("nan")), sparsities=[0.5])
    again = Sensitivity.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again.to_dict() == found.to_dict()
    with pytest.raises(BadFile, match="no sensitivity curves"):
        Sensitivity.from_dict({"curves": 3})


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_plots_are_written_whole(tmp_path, ending):
    found = sensitivity(model(), sc.Task(evaluate=kept))
    path = found.plot(tmp_path / f"curves.{ending}")
    assert path.stat().st_size > 1000
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError):
        found.plot(tmp_path / "curves.doc")
    assert len(list(tmp_path.iterdir())) == 1


def test_the_text_table_names_layers_and_sparsities():
    text = str(sensitivity(model(), sc.Task(evaluate=kept), sparsities=[0.5, 0.75]))
    assert "50 %" in text
    assert "0.weight" in text
    assert "16.0000" in text


def units(**counts):
    return Units({name: Table.of(torch.arange(float(count))) for name, count in counts.items()})


def test_the_robust_layer_gives_first():
    harms = (("a", ((0.5, 0.0), (0.9, 8.0))), ("b", ((0.5, 0.0), (0.9, 0.4))))
    counts = Sensitive(sparsity=0.7, harms=harms)(units(a=100, b=100))
    assert counts == {"a": 50, "b": 10}  # both give what is free, then b all that its curve covers


def test_equal_curves_share_alike_and_exactly():
    harms = (("a", ((0.9, 1.0),)), ("b", ((0.9, 1.0),)))
    assert Sensitive(sparsity=0.5, harms=harms)(units(a=100, b=100)) == {"a": 50, "b": 50}
    assert Sensitive(sparsity=0.99, harms=harms)(units(a=100, b=100)) == {"a": 1, "b": 1}


def test_a_missing_curve_and_an_impossible_floor_are_named():
    with pytest.raises(UnknownName, match="no sensitivity curve for 'a'"):
        Sensitive(sparsity=0.5, harms=())(units(a=4))
    with pytest.raises(BadSparsity, match="minimum kept"):
        Sensitive(sparsity=0.9, harms=(("a", ((0.5, 0.1),)),), min_kept=50)(units(a=100))


CURVE = st.lists(st.tuples(st.sampled_from([0.2, 0.4, 0.6, 0.8, 1.0]), st.floats(-0.1, 1)), min_size=1, max_size=5)


@given(
    curves=st.lists(CURVE, min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 60), min_size=4, max_size=4),
    sparsity=st.floats(0, 0.99),
    floor=st.integers(0, 3),
)
def test_counts_are_exact_and_within_limits(curves, sizes, sparsity, floor):
    harms = tuple((f"l{i}", tuple(curve)) for i, curve in enumerate(curves))
    table = units(**{name: size for (name, _), size in zip(harms, sizes, strict=False)})
    keep = round((1 - sparsity) * table.total)
    allocation = Sensitive(sparsity=sparsity, harms=harms, min_kept=floor)
    if sum(min(floor, table.count(name)) for name in table) > keep:
        with pytest.raises(BadSparsity):
            allocation(table)
        return
    counts = allocation(table)
    assert sum(counts.values()) == keep
    assert all(min(floor, table.count(name)) <= counts[name] <= table.count(name) for name in table)
    assert counts == allocation(table)


def predicted(points, sparsity):
    corners = [(0.0, 0.0), *points]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        if sparsity <= x1 + 1e-9:
            return y0 + (y1 - y0) * (sparsity - x0) / (x1 - x0)
    return float("inf")


@given(curves=st.lists(CURVE, min_size=3, max_size=3), remove=st.integers(0, 30))
def test_no_other_choice_is_predicted_to_do_less_harm(curves, remove):
    # the slow oracle: every way to take `remove` of three layers of 10 units, harm read off the hulls
    full = [(*curve, (1.0, 2.0)) for curve in curves]
    hulls = [hull(curve) for curve in full]
    harms = tuple((f"l{i}", curve) for i, curve in enumerate(full))
    counts = Sensitive(sparsity=min(remove / 30, 0.999), harms=harms)(units(l0=10, l1=10, l2=10))
    gone = [10 - counts[f"l{i}"] for i in range(3)]
    ways = (w for w in itertools.product(range(11), repeat=3) if sum(w) == sum(gone))
    best = min(sum(predicted(h, g / 10) for h, g in zip(hulls, way, strict=True)) for way in ways)
    assert sum(predicted(h, g / 10) for h, g in zip(hulls, gone, strict=True)) == pytest.approx(best, abs=1e-9)


@given(CURVE)
def test_the_hull_lies_under_the_monotone_curve_and_is_convex(points):
    corners = [(0.0, 0.0), *hull(tuple(points))]
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in itertools.pairwise(corners)]
    assert slopes == sorted(slopes) or all(b >= a - 1e-9 for a, b in itertools.pairwise(slopes))
    assert all(slope >= 0 for slope in slopes)
