"""Second-order methods: batches, weights, folders and settings that are mended or refused, each by name and before time is spent."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import utils

import secateur as sc
from secateur.errors import BadCalibration, BadFile, BadScores, BadSparsity, NeedsTask, NothingToPrune, UnknownName

NORMS = [
    utils.weight_norm,
    utils.spectral_norm,
    utils.parametrizations.weight_norm,
    utils.parametrizations.spectral_norm,
]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def on_labels(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def of_x(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # LSTM's own kernel, sample by sample
@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
@pytest.mark.parametrize("method", ["obs", "block_fisher"])
def test_recurrent_layers_give_gradients_of_single_samples(kind, method):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.o = kind(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.o(self.r(x)[0][:, -1])

    torch.manual_seed(0)
    model, x, y = Last(), torch.randn(12, 5, 4), torch.randint(0, 2, (12,))
    how = {"each": 20} if method == "obs" else {}
    pruned = sc.prune(model, method, sparsity=0.5, task=sc.Task([(x, y)], loss=on_labels), **how)
    assert pruned.masks.sparsity == pytest.approx(0.5, abs=0.02)
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("targets", ["own", "dense", "apart"])
def test_batches_that_only_the_loss_knows_are_enough(targets):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [{"x": torch.randn(16, 6), "y": torch.randint(0, 3, (16,))} for _ in range(2)]
    pruned = sc.prune(model, "layer_obs", sparsity=0.5, task=sc.Task(batches, loss=of_x), targets=targets)
    assert pruned.masks.sparsity == 0.5


class TestEmpirical:
    """Gradients of single samples, of batches as loaders make them."""

    METHODS = (
        ("block_fisher", {"curvature": "empirical"}),
        ("obs", {"curvature": "empirical", "each": 20}),
        ("obd", {"diagonal": "empirical"}),
    )

    def pruned(self, method, how, *, kind, beside=None):
        torch.manual_seed(0)
        batches = [{"x": torch.randn(9, 6), "y": torch.randint(0, 3, (9,))} for _ in range(2)]
        batches = [{k: kind(v) for k, v in b.items()} | (beside or {}) for b in batches]
        loss = lambda m, b: F.cross_entropy(m(torch.as_tensor(b["x"])), torch.as_tensor(b["y"]))  # noqa: E731
        return sc.prune(net(), method, sparsity=0.5, task=sc.Task(batches, loss=loss), **how)

    @pytest.mark.parametrize(("method", "how"), METHODS)
    @pytest.mark.parametrize(
        "beside", [{"name": "a"}, {"temperature": 3}, {"step": torch.tensor(3)}, {"mask": None}, {"size": (9, 6)}]
    )
    def test_what_all_samples_share_stays_as_it_is(self, method, how, beside):
        wanted = self.pruned(method, how, kind=torch.as_tensor)
        found = self.pruned(method, how, kind=torch.as_tensor, beside=beside)
        assert found.masks == wanted.masks
        assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), wanted.model.parameters(), strict=True))

    @pytest.mark.parametrize(("method", "how"), METHODS)
    @pytest.mark.parametrize(
        ("kind", "beside"), [(torch.Tensor.numpy, {}), (torch.as_tensor, {"ids": list("abcdefghi")})]
    )
    def test_arrays_and_lists_are_taken_sample_by_sample(self, method, how, kind, beside):
        wanted = self.pruned(method, how, kind=torch.as_tensor)
        found = self.pruned(method, how, kind=kind, beside=beside)
        assert found.masks == wanted.masks
        for one, other in zip(found.model.parameters(), wanted.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert found.report.settings.get("gradients", 18) == 18

    @pytest.mark.parametrize(("method", "how"), METHODS)
    def test_tensors_that_disagree_are_named(self, method, how):
        with pytest.raises(NeedsTask, match="tensors of 9 and 3 entries"):
            self.pruned(method, how, kind=torch.as_tensor, beside={"weights": torch.ones(3)})


@pytest.mark.parametrize("method", ["layer_obs", "obs", "block_fisher"])
def test_batches_that_are_none_are_named(method):
    def why(batches):
        with pytest.raises((BadCalibration, NeedsTask)) as caught:
            sc.prune(net(), method, sparsity=0.5, task=sc.Task(batches, loss=lambda m, b: m(b).square().mean()))
        return str(caught.value)

    assert "batch 1 holds a tensor of shape [0, 6]" in why([torch.randn(8, 6), torch.randn(0, 6)])
    assert "a tensor of shape [8, 6], not a collection" in why(torch.randn(8, 6))
    assert "5, not a collection" in why(5)


@pytest.mark.parametrize("method", ["obs", "block_fisher"])
def test_nothing_to_remove_is_no_error(method):
    pruned = sc.prune(
        net(), method, sparsity=0.0, task=sc.Task([(torch.randn(8, 6), torch.arange(8) % 3)], loss=on_labels)
    )
    assert pruned.masks.sparsity == 0
    assert any("Nothing was removed" in note for note in pruned.report.notes)


@pytest.mark.parametrize("method", ["layer_obs", "obs", "block_fisher"])
def test_weights_that_are_no_numbers_are_named(method):
    model = net()
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(BadScores, match=r"1 of \d+ numbers of '2.weight' are NaN"):
        sc.prune(model, method, sparsity=0.5, task=sc.Task([torch.randn(8, 6)], loss=lambda m, b: m(b).square().mean()))


def test_the_surgeon_leaves_biases_alone_when_told_to():
    task = sc.Task([torch.randn(32, 6)])
    with_them = sc.prune(net(), "obs", sparsity=0.5, task=task, each=4)
    without = sc.prune(net(), "obs", sparsity=0.5, task=task, each=4, include_bias=False)
    assert {name.endswith("bias") for name in with_them.masks} == {True, False}
    assert not any(name.endswith("bias") for name in without.masks)


def test_a_damaged_folder_is_named(tmp_path):
    task, folder = sc.Task([torch.randn(32, 6)]), tmp_path / "run"
    how = {"sparsity": 0.5, "task": task, "folder": str(folder)}
    whole = sc.prune(net(), "layer_obs", **how)
    block = sorted(folder.glob("*.safetensors"))[0]
    block.write_bytes(block.read_bytes()[:20])
    with pytest.raises(BadFile, match=f"{block.name} is damaged"):
        sc.prune(net(), "layer_obs", **how)
    block.unlink()
    again = sc.prune(net(), "layer_obs", **how)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    (folder / "run.json").write_text('{"run')
    with pytest.raises(BadFile, match=r"run\.json is damaged"):
        sc.prune(net(), "layer_obs", **how)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match="is a file: name a folder"):
        sc.prune(net(), "layer_obs", **{**how, "folder": str(tmp_path / "file")})


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("layer_obs", {"tune": 1.5}),
        ("layer_obs", {"tune": 4.0}),
        ("layer_obs", {"damping": None}),
        ("layer_obs", {"block": "128"}),
        ("layer_obs", {"rate": 0.0}),
        ("layer_obs", {"refit": "no"}),
        ("layer_obs", {"blocks": "0"}),
        ("obd", {"probes": 0}),
        ("obd", {"probes": -1}),
        ("obd", {"probes": 2.5}),
        ("layer_obs", {"seed": "a"}),
        ("layer_obs", {"seed": True}),
        ("layer_obs", {"progress": True}),
        ("obs", {"seed": 1.5}),
        ("obs", {"progress": "yes"}),
        ("block_fisher", {"seed": 1 << 64}),
        ("block_fisher", {"progress": 1}),
        ("random", {"seed": 1.5}),
        ("obs", {"each": 2.5}),
        ("obs", {"alpha": math.inf}),
        ("obs", {"floor": "x"}),
        ("block_fisher", {"samples": 2.5}),
        ("block_fisher", {"stages": 1.5}),
    ],
)
def test_settings_that_make_no_sense_are_named_before_anything_runs(method, option):
    ((name, value),) = option.items()
    with pytest.raises((BadSparsity, UnknownName), match=re.escape(f"{name}={value!r}")):
        sc.prune(net(), method, sparsity=0.5, task=sc.Task([torch.randn(8, 6)]), **option)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: f"{norm.__module__}.{norm.__name__}")
def test_weights_that_are_computed_for_every_call_are_left_alone(norm):
    model = net()
    norm(model[0])
    pruned = sc.prune(model, "layer_obs", sparsity=0.5, task=sc.Task([torch.randn(32, 6)]))
    assert list(pruned.masks) == ["2.weight"]
    bound = pruned.report.settings["bound"]
    assert bound["measured"] == pytest.approx(bound["spectral"], rel=1e-5)  # of one layer, the last
    assert any("Left alone" in note and "0." in note for note in pruned.report.notes)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: f"{norm.__module__}.{norm.__name__}")
def test_so_are_tables_and_recurrent_weights(norm):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.reader = norm(nn.Embedding(10, 6)), norm(nn.GRU(6, 5, batch_first=True), "weight_hh_l0")
            self.out = nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.reader(self.words(x))[0][:, -1])

    torch.manual_seed(0)
    tokens = list(torch.randint(0, 10, (2, 30, 4)))
    pruned = sc.prune(Reader(), "layer_obs", sparsity=0.5, task=sc.Task(tokens))
    assert set(pruned.masks) == {"reader.weight_ih_l0", "out.weight"}
    assert all(row["measured"] > 0 for row in pruned.report.settings["layers"])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_where_all_are_computed_the_way_out_is_named():
    task = sc.Task([torch.randn(32, 6)])
    with pytest.raises(NothingToPrune, match=r"computed for every call by WeightNorm.*remove_weight_norm"):
        sc.prune(utils.weight_norm(nn.Linear(6, 4)), "layer_obs", sparsity=0.5, task=task)
    with pytest.raises(NothingToPrune, match="remove_parametrizations"):
        sc.prune(utils.parametrizations.weight_norm(nn.Linear(6, 4)), "layer_obs", sparsity=0.5, task=task)


@pytest.mark.parametrize(
    "pack", [lambda x, y: (x, y), lambda x, y: [x, y], lambda x, _: x], ids=["tuple", "list", "tensor"]
)
def test_a_model_of_two_inputs_is_told_what_a_tuple_means(pack):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x, y):
            return self.a(x) * self.b(y)

    torch.manual_seed(0)
    pairs = [(torch.randn(16, 6), torch.randn(16, 6)) for _ in range(2)]
    words = r"Two\.forward\(x, y\) does not run on .* alone .*\(inputs, labels\).*dicts of its inputs.*loss="
    with pytest.raises(NeedsTask, match=words):
        sc.prune(Two(), "layer_obs", sparsity=0.5, task=sc.Task([pack(x, y) for x, y in pairs]))
    named = [{"x": x, "y": y} for x, y in pairs]
    assert sc.prune(Two(), "layer_obs", sparsity=0.5, task=sc.Task(named)).masks.sparsity == 0.5
    with pytest.raises(TypeError, match="unsupported operand"):  # of the model's own
        sc.prune(Broken(), "layer_obs", sparsity=0.5, task=sc.Task(pairs))


class Broken(nn.Linear):
    def __init__(self):
        super().__init__(6, 4)

    def forward(self, x):
        return super().forward(x) + "1"


@pytest.mark.parametrize(
    ("curvature", "labels"),
    [("squared", "no labels"), ("sampled", "labels drawn from the model"), ("empirical", "the labels of the task")],
)
@pytest.mark.parametrize("method", ["obs", "block_fisher"])
def test_receipts_say_which_labels_and_how_many_samples_were_used(method, curvature, labels):
    task = sc.Task([(torch.randn(12, 6), torch.randint(0, 3, (12,)))], loss=on_labels)
    how = {"each": 20} if method == "obs" else {}
    pruned = sc.prune(net(), method, sparsity=0.5, task=task, curvature=curvature, **how)
    assert labels in pruned.report.method
    assert "12 samples" in pruned.report.method


def test_layer_wise_receipts_say_how_many_samples_layers_took_in():
    task = sc.Task([torch.randn(12, 6), torch.randn(7, 6)])
    pruned = sc.prune(net(), "layer_obs", sparsity=0.5, task=task)
    assert "2 batches, up to 19 samples of a layer's inputs, no labels" in pruned.report.method
