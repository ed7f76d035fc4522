"""Layer-wise surgery from end to end on small networks."""

import json

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import BadCalibration, BadFile, BadSparsity, NeedsTask, UnknownName
from secateur.layers import facts_of
from secateur.layerwise.chains import chain_of
from secateur.layerwise.inflow import as_rows, feeds, from_rows, listening_to
from secateur.layerwise.surgery import CONTROLS, SOLVERS
from secateur.methods.layer_obs import LayerObs


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))


def batches():
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(12, 12, generator=g)
    return [torch.randn(64, 12, generator=g) @ mix for _ in range(4)]


def task():
    return sc.Task(batches())


def error(pruned, dense):
    x = torch.cat(batches())
    with torch.no_grad():
        return float((pruned(x) - dense(x)).square().mean())


@pytest.mark.parametrize("granularity", ["unstructured", "row", "2:4", "block:4x1", "filter", "input_channel"])
def test_it_is_better_than_magnitude_with_as_many_weights(granularity):
    model = net()
    how = {"granularity": granularity, "ignore": ["4"], "scope": "layer"}
    how |= {} if granularity == "2:4" else {"sparsity": 0.5}
    surgical = sc.prune(model, "layer_obs", task=task(), **how)
    plain = sc.prune(model, "magnitude", task=task(), **how)
    assert surgical.masks.kept == plain.masks.kept
    assert error(surgical.model, model) < error(plain.model, model)
    for name, mask in surgical.masks.items():
        assert not surgical.model.get_parameter(name)[~mask].any()


@pytest.mark.parametrize("solver", ["columns", "exact", "split", "scores"])
def test_every_solver_keeps_the_count_and_says_its_errors(solver):
    model = net()
    pruned = sc.prune(model, "layer_obs", sparsity=0.6, scope="layer", solver=solver, task=task())
    for name, mask in pruned.masks.items():
        assert int(mask.sum()) == round(0.4 * mask.numel())
        assert not pruned.model.get_parameter(name)[~mask].any()
    for row in pruned.report.settings["layers"]:
        assert row["refitted"] <= row["predicted"] * (1 + 1e-6)
        assert 0 <= row["measured"] <= row["refitted"] * (1 + 1e-6)  # what damping adds is not measured
        assert row["dense_norm"] == pytest.approx(model.get_parameter(row["name"]).norm().item(), rel=1e-5)
    bound = pruned.report.settings["bound"]
    assert bound["measured"] <= bound["spectral"] <= bound["paper"]


def test_what_is_better_is_in_order():
    model = net()

    def off(**how):
        return error(sc.prune(model, "layer_obs", sparsity=0.6, scope="layer", task=task(), **how).model, model)

    plain, refitted, split = off(refit=False), off(), off(solver="split")
    assert split < refitted < plain
    assert off(solver="split", targets="dense") < split
    assert off(solver="activation") > plain


def test_budgets_from_errors_keep_the_total_and_help():
    torch.manual_seed(3)
    model = net()
    with torch.no_grad():
        model[2].weight *= 0.01  # hardly matters
        model[2].bias.normal_()
    even = sc.prune(model, "layer_obs", sparsity=0.7, scope="layer", task=task())
    found = sc.prune(model, "layer_obs", sparsity=0.7, task=task())
    assert found.masks.kept == round(0.3 * found.masks.total)
    assert found.masks.sparsities()["2.weight"] > 0.75
    assert error(found.model, model) < error(even.model, model)


def test_data_that_say_nothing_are_refused_by_name():
    bad = batches()
    bad[1][3, 2] = torch.nan
    with pytest.raises(BadCalibration, match="batch 1 holds 1 NaN"):
        sc.prune(net(), "layer_obs", sparsity=0.5, task=sc.Task(bad))
    with pytest.raises(BadCalibration, match=r"every number .* is 0.5"):
        sc.prune(net(), "layer_obs", sparsity=0.5, task=sc.Task([torch.full((8, 12), 0.5)]))
    with pytest.raises(BadCalibration, match=r"'0.weight', the first layer, takes in the same numbers"):
        sc.prune(net(), "layer_obs", sparsity=0.5, scope="layer", task=sc.Task([torch.randn(1, 12).expand(8, 12)]))
    broken = net()
    broken[0].bias.data[0] = torch.inf
    with pytest.raises(BadCalibration, match=r"'2.weight' takes in NaN"):
        sc.prune(broken, "layer_obs", sparsity=0.5, scope="layer", task=task())
    with pytest.raises(NeedsTask):
        sc.prune(net(), "layer_obs", sparsity=0.5)
    with pytest.raises(BadSparsity):
        sc.prune(net(), "layer_obs", task=task())
    with pytest.raises(UnknownName, match="solver"):
        LayerObs(solver="magic")


def test_a_dead_input_leaves_and_nothing_else_minds():
    model, data = net(), [x * (torch.arange(12) != 5) for x in batches()]
    pruned = sc.prune(model, "layer_obs", sparsity=0.5, scope="layer", task=sc.Task(data), solver="split")
    assert not pruned.model[0].weight[:, 5].any()
    assert torch.isfinite(pruned.model(data[0])).all()
    assert pruned.report.notes == ()


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_reads_an_input_that_never_varies_stays_as_it_was_or_leaves(solver):
    """The data say nothing of it, so the mask alone decides; zeros that no mask knows of would be counted by nobody."""
    model, data = net(), [torch.where(torch.arange(12) == 5, torch.tensor(2.0), x) for x in batches()]
    for sparsity in (0.0, 0.3):
        pruned = sc.prune(model, "layer_obs", sparsity=sparsity, scope="layer", task=sc.Task(data), solver=solver)
        for name, mask in pruned.masks.items():
            assert torch.equal(pruned.model.get_parameter(name) != 0, mask)
        kept = pruned.masks["0.weight"][:, 5]
        if solver not in CONTROLS:
            assert torch.equal(pruned.model[0].weight[kept, 5], model[0].weight[kept, 5])


def test_the_magnitude_control_has_the_mask_of_magnitude():
    model, data = net(), [x * (torch.arange(12) != 5) for x in batches()]
    how = {"sparsity": 0.5, "scope": "layer"}
    found = sc.prune(model, "layer_obs", solver="magnitude", task=sc.Task(data), **how)
    wanted = sc.prune(model, "magnitude", **how)
    for name, mask in wanted.masks.items():
        assert torch.equal(found.masks[name], mask)
        assert torch.equal(found.model.get_parameter(name), wanted.model.get_parameter(name))


def test_a_layer_that_takes_in_nothing_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].bias.data.fill_(-1e6)
    pruned = sc.prune(model, "layer_obs", sparsity=0.5, scope="layer", task=task())
    wanted = sc.prune(model, "magnitude", sparsity=0.5, scope="layer").masks["2.weight"]
    assert torch.equal(pruned.masks["2.weight"], wanted)
    assert torch.equal(pruned.model[2].weight, model[2].weight * wanted)
    (note,) = pruned.report.notes
    assert "nothing that varies on these batches, so pruned by magnitude" in note
    assert "ignore=['2.weight']" in note


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    model, folder = net(), str(tmp_path / "run")
    how = {"sparsity": 0.5, "scope": "layer", "task": task(), "targets": "dense"}
    straight = sc.prune(model, "layer_obs", **how)

    class Killed(Exception):
        pass

    def kill(done, *_):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        sc.prune(model, "layer_obs", folder=folder, progress=kill, **how)
    seen = []
    resumed = sc.prune(model, "layer_obs", folder=folder, progress=lambda *a: seen.append(a), **how)
    assert resumed.masks == straight.masks
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    assert len(seen) == 5
    with pytest.raises(BadFile, match="another run"):
        sc.prune(model, "layer_obs", folder=folder, **(how | {"sparsity": 0.6}))
    assert json.loads((tmp_path / "run" / "run.json").read_text())


def test_chains_are_found():
    assert chain_of(net(), batches()[0]) == ["0", "1", "2", "3", "4"]
    nested = nn.Sequential(nn.Sequential(nn.Linear(12, 12), nn.ReLU()), nn.Linear(12, 2))
    assert chain_of(nested, batches()[0]) == ["0.0", "0.1", "1"]
    assert chain_of(nn.Linear(12, 2), batches()[0]) == []


# What layers take in


def flows(model, *args):
    """Every weight's features, and the layers' outputs recomputed from them."""
    seen = {}
    modules = {m: path for path, m in model.named_modules() if facts_of(m)}
    with (
        torch.no_grad(),
        listening_to(
            modules, lambda path, found: seen.update({f"{path}.{k}".lstrip("."): v for k, v in found.items()})
        ),
    ):
        out = model(*args)
    return seen, out


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (3, 4, 7, 7)),
        (nn.Conv1d(4, 6, 3, dilation=2, padding=2, padding_mode="circular", bias=False), (3, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=False), (3, 4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 4, stride=2, groups=2, bias=False), (3, 4, 5)),
        (nn.Linear(5, 3, bias=False), (2, 4, 5)),
    ],
)
def test_rows_times_features_are_the_output(layer, shape):
    x = torch.randn(shape)
    facts = facts_of(layer)["weight"]
    found = feeds(layer, (x,), {})["weight"]
    rows = as_rows(layer.weight.detach(), facts, len(found))
    assert torch.equal(from_rows(rows, facts, layer.weight), layer.weight)
    wanted = layer(x).detach()
    wanted = wanted.flatten(0, 1).t() if isinstance(layer, nn.Linear) else wanted.transpose(0, 1).flatten(1)
    torch.testing.assert_close((rows @ found).flatten(0, 1), wanted, rtol=1e-4, atol=1e-5)


def test_attention_is_listened_to_inside():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    seen, (out, _) = flows(layer, x, x, x)
    again = layer.out_proj.weight @ seen["out_proj.weight"][0] + layer.out_proj.bias.unsqueeze(1)
    torch.testing.assert_close(again.t().reshape(2, 5, 8), out, rtol=1e-4, atol=1e-5)
    assert seen["in_proj_weight"].shape == (3, 8, 10)
    pruned = sc.prune(
        layer_net := nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        "layer_obs",
        sparsity=0.5,
        scope="layer",
        task=sc.Task([x]),
    )
    assert set(pruned.masks) == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    }
    assert not torch.equal(layer_net.linear1.weight, pruned.model.linear1.weight)


def test_a_recurrent_layer_is_listened_to_step_by_step():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(2, 6, 3)
    seen, (out, _) = flows(lstm, x)
    states = seen["weight_hh_l1"][0].t().reshape(2, 6, 4)
    torch.testing.assert_close(states[:, 1:], out[:, :-1, :4])
    backwards = seen["weight_hh_l1_reverse"][0].t().reshape(2, 6, 4)
    torch.testing.assert_close(backwards[:, 1:], out.flip(1)[:, :-1, 4:])
    pruned = sc.prune(lstm, "layer_obs", sparsity=0.5, scope="layer", task=sc.Task([x]))
    assert pruned.masks.sparsity == 0.5


class Decoder(nn.Module):
    """Reads token by token, or all at once; starts with the state that its input says, or with none."""

    def __init__(self, kind, *, by_step):
        super().__init__()
        torch.manual_seed(0)
        self.reader, self.first, self.out = kind(4, 12, 2, batch_first=True), nn.Linear(4, 12), nn.Linear(12, 3)
        self.by_step = by_step

    def forward(self, x):
        h = self.first(x[:, 0]).tanh().expand(2, -1, -1)
        h = (h, 2 * h) if isinstance(self.reader, nn.LSTM) else h
        if not self.by_step:
            return self.out(self.reader(x, hx=h)[0])
        outs = []
        for token in x.split(1, 1):
            y, h = self.reader(token, h)
            outs.append(y)
        return self.out(torch.cat(outs, 1))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_recurrent_layer_starts_with_the_state_that_it_is_given(kind):
    task = sc.Task(list(torch.randn(2, 30, 6, 4)))
    whole, by_step = (
        sc.prune(Decoder(kind, by_step=by_step), "layer_obs", sparsity=0.5, scope="layer", task=task)
        for by_step in (False, True)
    )
    for one, other in zip(whole.model.parameters(), by_step.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    rows = {row["name"]: row for row in by_step.report.settings["layers"]}
    assert rows["reader.weight_hh_l1"]["measured"] > 0
    assert rows["reader.weight_hh_l1"]["dead"] == 0


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_given_states_are_the_first_ones_in_every_layer_and_direction(kind):
    torch.manual_seed(0)
    layer, x = kind(3, 4, num_layers=2, bidirectional=True), torch.randn(6, 2, 3)
    h = torch.randn(4, 2, 4)
    start = (h, torch.randn(4, 2, 4)) if kind is nn.LSTM else h
    seen, (out, _) = flows(layer, x, start)
    for suffix, first, at, part in (("", 0, 2, slice(4)), ("_reverse", -1, 3, slice(4, None))):
        states = seen[f"weight_hh_l1{suffix}"][0].t().reshape(2, 6, 4)
        torch.testing.assert_close(states[:, 0], h[at])
        wanted = (out if first == 0 else out.flip(0))[:-1, :, part].transpose(0, 1)
        torch.testing.assert_close(states[:, 1:], wanted)
    packed = nn.utils.rnn.pack_padded_sequence(x, [4, 6], enforce_sorted=False)  # the first of h is the shorter one's
    one, _ = flows(layer, packed, start)
    torch.testing.assert_close(one["weight_hh_l0_reverse"][0].t()[[0, 4]], h[1])


def test_a_convolution_with_groups_is_repaired():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    data = [torch.randn(8, 4, 8, 8) + 1]
    wanted = model(data[0]).detach()
    found = sc.prune(model, "layer_obs", sparsity=0.5, scope="layer", solver="split", task=sc.Task(data))
    plain = sc.prune(model, "magnitude", sparsity=0.5, scope="layer")
    assert found.masks.kept == plain.masks.kept
    assert (found.model(data[0]) - wanted).square().mean() < 0.5 * (plain.model(data[0]) - wanted).square().mean()


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.keep, self.out = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.out(torch.relu(self.keep(self.norm(x))))


def test_a_tuned_run_that_was_killed_ends_the_same_and_leaves_alone_what_it_is_told_to(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(*(Normed() for _ in range(3)))
    task = sc.Task(list(torch.randn(3, 20, 8)))

    def killed(done, *_):
        if done == 2:
            raise KeyboardInterrupt

    how = {"sparsity": 0.5, "scope": "layer", "task": task, "tune": 3, "rate": 1e-2, "ignore": ["*.keep"]}
    straight = sc.prune(net, "layer_obs", **how)
    with pytest.raises(KeyboardInterrupt):
        sc.prune(net, "layer_obs", folder=str(tmp_path), progress=killed, **how)
    again = sc.prune(net, "layer_obs", folder=str(tmp_path), **how)
    assert all(torch.equal(a, b) for a, b in zip(straight.model.parameters(), again.model.parameters(), strict=True))
    assert len(again.report.settings["blocks"]) == 3
    assert torch.equal(again.model[1].keep.weight, net[1].keep.weight)
    assert not torch.equal(again.model[1].norm.weight, net[1].norm.weight)


def test_other_weights_or_batches_are_another_run(tmp_path):
    torch.manual_seed(0)
    net, batches = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), list(torch.randn(2, 30, 8))
    how = {"sparsity": 0.5, "folder": str(tmp_path)}
    sc.prune(net, "layer_obs", task=sc.Task(batches), **how)
    with pytest.raises(BadFile, match="another run"):
        sc.prune(net, "layer_obs", task=sc.Task([2 * batch for batch in batches]), **how)
    net[2].weight.data *= 2
    with pytest.raises(BadFile, match="another run"):
        sc.prune(net, "layer_obs", task=sc.Task(batches), **how)


def test_an_operation_in_place_changes_nothing():
    def net(*, inplace):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(inplace=inplace),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(inplace=inplace),
            nn.Flatten(),
            nn.Linear(32, 4),
        )

    task = sc.Task(list(torch.randn(2, 16, 3, 6, 6)))
    one, other = (sc.prune(net(inplace=inplace), "layer_obs", sparsity=0.6, task=task) for inplace in (True, False))
    assert one.masks == other.masks
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_experts_that_some_batches_do_not_call():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.experts = nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])

        def forward(self, x):
            return self.experts[int(x[0, 0] > 0)](torch.relu(self.first(x)))

    torch.manual_seed(0)
    batches = list(torch.randn(4, 32, 8))
    for batch, sign in zip(batches, (-1, -1, 1, -1), strict=True):
        batch[0, 0] = sign
    pruned = sc.prune(Experts(), "layer_obs", sparsity=0.5, scope="layer", task=sc.Task(batches))
    assert [row["samples"] for row in pruned.report.settings["layers"]] == [128, 96, 32]


@pytest.mark.parametrize("option", [{"damping": float("nan")}, {"samples": 0}, {"tune": -1}, {"block": 0}])
def test_options_that_make_no_sense(option):
    with pytest.raises(BadSparsity, match="makes no sense"):
        sc.methods.LayerObs(**option)


@pytest.mark.parametrize("solver", ["activation", "magnitude", "random", "columns"])
def test_errors_are_the_measured_ones_where_biases_stay_as_they_are(solver):
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 5), 0.1 * torch.randn(200, 12) + 5
    how = {"sparsity": 0.5, "scope": "layer", "solver": solver, "refit": False, "task": sc.Task([x])}
    pruned = sc.prune(layer, "layer_obs", **how)
    assert torch.equal(pruned.model.bias, layer.bias)
    true = (pruned.model(x) - layer(x)).detach().square().sum(1).mean().item()
    assert pruned.report.settings["layers"][0]["measured"] == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize(
    ("solver", "refit", "jointly"),
    [("columns", True, True), ("columns", False, False), ("exact", False, True), ("magnitude", True, False)],
)
def test_the_receipt_says_a_joint_solve_only_where_there_was_one(solver, refit, jointly):
    done = sc.prune(net(), "layer_obs", sparsity=0.5, scope="layer", solver=solver, refit=refit, task=task())
    assert ("solved for jointly" in done.report.method) == jointly


def test_what_is_next_to_nothing_is_not_below_zero():
    """Fewer samples than inputs, so that survivors fit them all, in float32."""
    torch.manual_seed(0)
    layer, x = nn.Linear(800, 480), torch.randn(60, 800)
    done = sc.prune(layer, "layer_obs", sparsity=0.5, damping=1e-8, scope="layer", task=sc.Task([x]))
    assert (done.model(x) - layer(x)).abs().max() < 1e-2
    assert 0 <= done.report.settings["layers"][0]["measured"] < 1e-4
