"""Merging similar units in whole networks: exact where units have their like, and only where that holds."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coupling.tricks import inputs, make
from torch import nn

import secateur as sc
from secateur.allocations.uniform import Uniform
from secateur.errors import BadScores, BadSparsity, NeedsTask, NothingToPrune, UnknownName
from secateur.methods import DataFree

IMAGE = (1, 2, 8, 8)


def drawn(*layers, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(*(make() for make in layers))
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.data.uniform_(0.5, 1.5)
    return model.eval()


def conv(a, b):
    return lambda: nn.Conv2d(a, b, 3, padding=1)


NETS = {  # first layer of 12 units, and what it is called on
    "linear": ([lambda: nn.Linear(5, 12), nn.ReLU, lambda: nn.Linear(12, 3)], (4, 5)),
    "leaky": ([lambda: nn.Linear(5, 12), lambda: nn.LeakyReLU(0.1), lambda: nn.Linear(12, 3)], (4, 5)),
    "no activation": ([lambda: nn.Linear(5, 12, bias=False), lambda: nn.Linear(12, 3)], (4, 5)),
    "conv": ([conv(2, 12), nn.ReLU, conv(12, 3)], IMAGE),
    "conv, norm": ([conv(2, 12), lambda: nn.BatchNorm2d(12), nn.ReLU, conv(12, 3)], IMAGE),
    "pooled, flattened": (
        [conv(2, 12), nn.ReLU, lambda: nn.MaxPool2d(2), nn.Flatten, lambda: nn.Linear(192, 3)],
        IMAGE,
    ),
    "averaged": ([conv(2, 12), nn.ReLU, lambda: nn.AdaptiveAvgPool2d(2), nn.Flatten, lambda: nn.Linear(48, 3)], IMAGE),
    "transposed": ([lambda: nn.ConvTranspose2d(2, 12, 2, 2), nn.ReLU, lambda: nn.ConvTranspose2d(12, 3, 2)], IMAGE),
    "tanh": ([lambda: nn.Linear(5, 12), nn.Tanh, lambda: nn.Linear(12, 3)], (4, 5)),
    "gelu": ([conv(2, 12), lambda: nn.BatchNorm2d(12), nn.GELU, conv(12, 3)], IMAGE),
}
EQUAL = {"tanh", "gelu"}  # where units must be equal, not only multiples


@torch.no_grad()
def with_copies(model, copies, factor, generator):
    """Make the last ``copies`` of the twelve units of the first layer multiples of others."""
    first, norm = model[0], model[1] if isinstance(model[1], nn.BatchNorm2d) else None
    of = torch.randint(0, 12 - copies, (copies,), generator=generator)
    weight = first.weight.movedim(1 if isinstance(first, nn.ConvTranspose2d) else 0, 0)
    scale = 1.0 if norm is not None else factor
    weight[12 - copies :] = scale * weight[of]
    if first.bias is not None:
        first.bias[12 - copies :] = scale * first.bias[of]
    if norm is not None:
        for tensor in (norm.running_mean, norm.running_var):
            tensor[12 - copies :] = tensor[of]
        for tensor in (norm.weight, norm.bias):
            tensor[12 - copies :] = factor * tensor[of]
    return model


class TestExactness:
    @pytest.mark.parametrize("options", [{}, {"distance": "expected"}, {"distance": "expected", "refit": True}])
    @pytest.mark.parametrize("name", NETS)
    def test_half_of_the_units_are_multiples_of_the_others(self, name, options):
        layers, shape = NETS[name]
        model = with_copies(drawn(*layers), 6, 1.0 if name in EQUAL else 3.0, torch.Generator().manual_seed(0))
        example = torch.randn(shape)
        pruned = sc.prune(model, "data_free", granularity="channel", sparsity=0.5, example_inputs=example, **options)
        assert pruned.model[0].weight.shape[1 if name == "transposed" else 0] == 6
        assert pruned.report.settings["groups"][0]["last_saliency"] == 0
        fresh = torch.randn(8, *shape[1:])
        torch.testing.assert_close(pruned.model(fresh), model(fresh), rtol=1e-5, atol=1e-6)

    @settings(max_examples=12)
    @given(
        st.sampled_from(sorted(NETS)),
        st.integers(1, 8),
        st.sampled_from([0.25, 1.0, 3.0]),
        st.integers(0, 999),
        st.booleans(),
    )
    def test_exact_likes_leave_by_themselves(self, name, copies, factor, seed, relative):
        """Below a hundred units the cut-off takes exactly those that have their like, and the network computes the same."""
        layers, shape = NETS[name]
        generator = torch.Generator().manual_seed(seed)
        model = with_copies(drawn(*layers, seed=seed), copies, 1.0 if name in EQUAL else factor, generator)
        method = DataFree(distance="relative" if relative else "expected")
        pruned = method(model, example_inputs=torch.randn(shape))
        assert pruned.report.settings["groups"][0]["removed"] == copies
        fresh = torch.randn(8, *shape[1:], generator=generator)
        torch.testing.assert_close(pruned.model(fresh), model(fresh), rtol=1e-5, atol=2e-6)

    def test_layers_one_after_the_other(self):
        model = drawn(conv(2, 12), nn.ReLU, conv(12, 12), nn.ReLU, conv(12, 3))
        generator = torch.Generator().manual_seed(0)
        with_copies(model, 5, 2.0, generator)
        with_copies(model[2:], 4, 3.0, generator)
        pruned = DataFree()(model, example_inputs=torch.randn(IMAGE))
        assert (pruned.model[0].out_channels, pruned.model[2].out_channels) == (7, 8)
        fresh = torch.randn(4, *IMAGE[1:])
        torch.testing.assert_close(pruned.model(fresh), model(fresh), rtol=1e-5, atol=1e-6)

    def test_multiples_are_no_likes_behind_tanh(self):
        layers, shape = NETS["tanh"]
        model = with_copies(drawn(*layers), 1, 3.0, torch.Generator().manual_seed(0))
        pruned = DataFree()(model, example_inputs=torch.randn(shape))
        assert pruned.report.settings["groups"][0]["removed"] == 0
        assert any("not homogeneous: 0.weight" in note for note in pruned.report.notes)
        assert any("Nothing was removed" in note for note in pruned.report.notes)


class TestByHand:
    def test_three_times_another(self):
        """y = 1 f(x) + 1 f(3 x) is 4 f(x), or 4/3 f(3 x)."""
        model = drawn(lambda: nn.Linear(1, 2, bias=False), nn.ReLU, lambda: nn.Linear(2, 1, bias=False))
        model[0].weight.data = torch.tensor([[1.0], [3.0]])
        model[2].weight.data = torch.tensor([[1.0, 1.0]])
        pruned = DataFree()(model, example_inputs=torch.ones(1, 1))
        assert pruned.model[0].weight.tolist() == [[3.0]]
        assert pruned.model[2].weight.item() == pytest.approx(4 / 3)
        assert pruned.masks["0.weight"].tolist() == [[False], [True]]
        assert pruned.masks["2.weight"].tolist() == [[False, True]]

    def test_naive_removal_is_the_control(self):
        layers, shape = NETS["linear"]
        model, example = drawn(*layers), torch.randn(shape)
        merged = DataFree(allocation=Uniform(sparsity=0.5))(model, example_inputs=example)
        naive = DataFree(allocation=Uniform(sparsity=0.5), naive=True)(model, example_inputs=example)
        assert merged.masks == naive.masks
        kept = naive.masks["2.weight"][0]
        assert torch.equal(naive.model[2].weight, model[2].weight[:, kept])
        assert not torch.equal(merged.model[2].weight, model[2].weight[:, kept])
        assert torch.equal(merged.model[0].weight, model[0].weight[kept])

    def test_a_refit_comes_nearer_for_normal_inputs(self):
        model = drawn(lambda: nn.Linear(20, 60), nn.ReLU, lambda: nn.Linear(60, 3))
        fresh = torch.randn(2000, 20)
        errors = []
        for refit in (False, True):
            method = DataFree(allocation=Uniform(sparsity=0.5), distance="expected", refit=refit)
            thin = method(model, example_inputs=fresh[:1]).model
            errors.append((thin(fresh) - model(fresh)).detach().square().mean())
        assert errors[1] < 0.7 * errors[0]

    @pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1)], ids=str)
    def test_a_refit_comes_nearer_behind_pooling_by_maxima(self, pool):
        model = drawn(lambda: nn.Conv2d(3, 40, 3), lambda: pool, lambda: nn.Conv2d(40, 10, 1))
        fresh = nn.functional.interpolate(torch.randn(64, 3, 6, 6), size=(24, 24), mode="bicubic")
        errors = []
        for refit in (False, True):
            method = DataFree(allocation=Uniform(sparsity=0.5), distance="expected", refit=refit)
            thin = method(model, example_inputs=fresh[:1]).model
            errors.append(float((thin(fresh) - model(fresh)).detach().square().mean()))
        assert errors[1] < 0.95 * errors[0]

    @pytest.mark.parametrize("options", [{}, {"distance": "expected"}, {"distance": "expected", "refit": True}])
    def test_nothing_is_merged_into_what_gives_nothing(self, options):
        model = drawn(lambda: nn.Linear(4, 4), nn.ReLU, lambda: nn.Linear(4, 2))
        with torch.no_grad():
            model[0].weight[1:], model[0].bias[1:], model[2].weight[:, 0] = 0, 0, 0
        thin = sc.prune(
            model, "data_free", granularity="channel", sparsity=0.5, example_inputs=torch.zeros(1, 4), **options
        ).model
        torch.testing.assert_close(thin(torch.ones(1, 4)), model(torch.ones(1, 4)))

    @pytest.mark.parametrize("refit", [False, True])
    @pytest.mark.parametrize("params", [1898, 1948, 2467])
    def test_a_budget_leaves_room_rather_than_give_up_more_than_likes(self, params, refit):
        """Without the likes it costs 1,898: a swap of one of them for a unit without its like would come nearer the limit."""
        model = drawn(
            lambda: nn.Conv2d(1, 16, 3, padding=1), nn.ReLU, lambda: nn.MaxPool2d(2), lambda: nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU, lambda: nn.MaxPool2d(2), nn.Flatten, lambda: nn.Linear(128, 10),
        )  # fmt: skip
        with torch.no_grad():
            for layer, half in ((model[0], 8), (model[3], 16)):
                layer.weight[half:], layer.bias[half:] = layer.weight[:half], layer.bias[:half]
        fresh, how = torch.randn(8, 1, 8, 8), {"distance": "expected", "refit": refit}
        pruned = sc.prune(
            model, "data_free", granularity="channel", budget=f"params:{params}", example_inputs=fresh[:1], **how
        )
        torch.testing.assert_close(pruned.model(fresh), model(fresh), rtol=1e-4, atol=1e-5)
        assert pruned.report.after.params <= params

    def test_the_control_does_not_say_that_it_was_refitted(self):
        model = drawn(lambda: nn.Linear(4, 8), nn.ReLU, lambda: nn.Linear(8, 2))
        how = {"naive": True, "refit": True, "example_inputs": torch.zeros(1, 4)}
        assert "refitted" not in sc.prune(model, "data_free", granularity="channel", sparsity=0.5, **how).report.method


class TestHowMuch:
    @staticmethod
    def wide(seed=0):
        return drawn(lambda: nn.Linear(10, 150), nn.ReLU, lambda: nn.Linear(150, 8), seed=seed)

    def removed(self, **options):
        pruned = sc.prune(self.wide(), "data_free", granularity="channel", example_inputs=torch.ones(1, 10), **options)
        (row,) = pruned.report.settings["groups"]
        assert pruned.model[0].out_features == 150 - row["removed"]
        return row["removed"], pruned

    def test_the_cut_off(self):
        count, pruned = self.removed()
        (row,) = pruned.report.settings["groups"]
        assert 0 < count == row["predicted"] < 149
        assert row["last_saliency"] < row["cut_off"]
        assert any(
            note.startswith("Cut-off without data: the mode of the saliencies of all removals")
            for note in pruned.report.notes
        )
        assert self.removed(histogram="pairs")[0] > count

    @pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
    def test_a_fraction_of_what_is_predicted(self, fraction):
        assert self.removed(fraction=fraction)[0] == round(fraction * self.removed()[0])

    def test_sparsity_scope_and_rounding(self):
        assert self.removed(sparsity=0.4)[0] == 60
        assert self.removed(sparsity=0.4, round_to=16)[0] == 150 - 96
        assert self.removed(sparsity=0.4, scope="layer", min_kept=100)[0] == 50

    def test_budgets(self):
        _, pruned = self.removed(budget="params:50%")
        assert 0.49 * pruned.report.before.params < pruned.report.after.params <= 0.5 * pruned.report.before.params
        assert pruned.report.notes[0].startswith("Budget: at most")

    def test_layers_share_by_relative_saliency(self):
        """The first layer has likes, the second has none: all that leaves, leaves there."""
        model = drawn(lambda: nn.Linear(5, 12), nn.ReLU, lambda: nn.Linear(12, 12), nn.ReLU, lambda: nn.Linear(12, 3))
        with_copies(model, 6, 2.0, torch.Generator().manual_seed(0))
        pruned = sc.prune(model, "data_free", granularity="channel", sparsity=0.25, example_inputs=torch.ones(1, 5))
        assert (pruned.model[0].out_features, pruned.model[2].out_features) == (6, 12)


class TestPromises:
    def test_the_narrowed_model_is_the_masked_and_merged_one(self):
        model, example = make("flatten"), inputs("flatten")
        before = copy.deepcopy(model.state_dict())
        pruned = sc.prune(model, "data_free", granularity="channel", sparsity=0.3, example_inputs=example)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert type(pruned.model) is type(model)
        shapes = {name: mask.shape for name, mask in pruned.masks.items()}
        assert shapes.items() <= {name: p.shape for name, p in model.named_parameters()}.items()
        rows = pruned.masks["fc.weight"].any(1)
        assert pruned.model.fc.out_features == int(rows.sum())
        assert torch.equal(pruned.model.fc.bias, model.fc.bias[rows])
        json.dumps(pruned.report.to_dict(), allow_nan=False)

    def test_groups_that_stay_are_named_with_their_reasons(self):
        model, example = make("residual"), inputs("residual")
        pruned = sc.prune(model, "data_free", granularity="channel", sparsity=0.5, example_inputs=example)
        assert pruned.model.a[0].out_channels == 4
        assert pruned.model.stem[0].out_channels == 12
        (note,) = [note for note in pruned.report.notes if note.startswith("Not merged")]
        assert "stem.0.weight (2 layers make them (stem.0.weight, b.0.weight))" in note

    def test_ignored_layers_stay(self):
        model, example = make("flatten"), inputs("flatten")
        pruned = sc.prune(
            model, "data_free", granularity="channel", sparsity=0.5, ignore=["a.0", "b.0"], example_inputs=example
        )
        assert [pruned.model.a[0].out_channels, pruned.model.b[0].out_channels, pruned.model.fc.out_features] == [
            8,
            6,
            10,
        ]

    def test_the_result_saves_and_loads(self, tmp_path):
        model, example = make("flatten"), inputs("flatten")
        pruned = sc.prune(model, "data_free", granularity="channel", sparsity=0.5, example_inputs=example)
        sc.save(pruned, tmp_path / "thin.safetensors")
        again = sc.load(tmp_path / "thin.safetensors", make("flatten", seed=1))
        torch.testing.assert_close(again.model.eval()(example), pruned.model(example))

    def test_random_state_stays(self):
        state = torch.get_rng_state()
        DataFree()(make("flatten"), example_inputs=torch.zeros(1, 3, 8, 8))
        assert torch.equal(state, torch.get_rng_state())


class TestRefusals:
    def test_words(self):
        with pytest.raises(UnknownName, match=r"distance='cosine' is not known: use 'relative' or 'expected'"):
            DataFree(distance="cosine")
        with pytest.raises(UnknownName, match=r"histogram="):
            DataFree(histogram="units")
        with pytest.raises(BadSparsity, match="above 0, at most 1"):
            DataFree(fraction=0.0)
        with pytest.raises(BadSparsity, match="fraction= is of what the cut-off predicts"):
            DataFree(fraction=0.5, allocation=Uniform(sparsity=0.5))
        with pytest.raises(BadSparsity, match="round_to=0"):
            DataFree(round_to=0)
        with pytest.raises(UnknownName, match="has no option 'p'"):
            sc.prune(make("flatten"), "data_free", granularity="channel", p=2, example_inputs=inputs("flatten"))

    def test_granularity_and_example(self):
        with pytest.raises(UnknownName, match="pass granularity='channel'"):
            sc.prune(make("flatten"), "data_free", sparsity=0.5)
        with pytest.raises(NeedsTask, match="pass example_inputs="):
            sc.prune(make("flatten"), "data_free", granularity="channel", sparsity=0.5)

    def test_nothing_qualifies(self):
        with pytest.raises(NothingToPrune, match=r"can be merged: .*\(a unit is a convolution group\)"):
            sc.prune(make("grouped"), "data_free", granularity="channel", example_inputs=inputs("grouped"))

    @pytest.mark.parametrize("refit", [False, True])
    @pytest.mark.parametrize(
        ("place", "named"), [("0.weight", "'0.weight'"), ("0.bias", "'0.bias'"), ("2.weight", "'2.weight'")]
    )
    def test_nan_is_refused_by_name(self, place, named, refit):
        model = drawn(lambda: nn.Linear(4, 6), nn.ReLU, lambda: nn.Linear(6, 2))
        model.get_parameter(place).data.flatten()[0] = float("nan")
        with pytest.raises(BadScores, match=f"numbers of {named} are NaN or infinite.*ignore="):
            DataFree(refit=refit)(model, example_inputs=torch.ones(1, 4))

    def test_one_unit_each(self):
        model = drawn(lambda: nn.Linear(4, 1), nn.ReLU, lambda: nn.Linear(1, 2))
        with pytest.raises(NothingToPrune, match="no channel of Sequential may leave"):
            DataFree()(model, example_inputs=torch.ones(1, 4))

    def test_how_much_must_be_said_to_share_it(self):
        with pytest.raises(BadSparsity, match="how much should leave"):
            sc.prune(
                make("flatten"), "data_free", granularity="channel", scope="layer", example_inputs=inputs("flatten")
            )
