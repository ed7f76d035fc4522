"""`narrow`: in place, with an optimizer, when it goes wrong, and in one call through `prune`."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coupling.tricks import NAMES, difference, draw_masks, inputs, make, masked
from torch import nn

import secateur as sc
from secateur.coupling import rule
from secateur.coupling.dyeing import RULES
from secateur.errors import BadSparsity, NarrowingFailed, NeedsTask, NothingToPrune, UnknownName, WrongModel
from secateur.narrowing.narrow import structure_of


def setting(name="residual", fraction=0.5):
    model, example = make(name), inputs(name)
    coupling = sc.couple(model, example)
    return model, example, coupling, draw_masks(model, coupling.groups(), fraction, seed=0)


def widths(model):
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


class TestInPlace:
    def test_by_default_a_copy(self):
        model, example, coupling, masks = setting()
        before = copy.deepcopy(model)
        thin = sc.narrow(model, masks, example, coupling=coupling)
        assert thin is not model
        assert difference(before, model, example) == 0
        assert widths(model) == widths(before)
        assert structure_of(model) is None

    def test_parameters_keep_their_identity(self):
        model, example, coupling, masks = setting()
        identities = {n: id(p) for n, p in model.named_parameters()}
        expected = masked(model, masks)
        assert sc.narrow(model, masks, example, coupling=coupling, inplace=True) is model
        assert {n: id(p) for n, p in model.named_parameters()} == identities
        assert difference(expected, model, inputs("residual", 3, 4)) < 1e-5
        assert model.stem[0].out_channels == model.stem[0].weight.shape[0] == model.stem[1].num_features == 6

    def test_a_run_that_fails_changes_no_weight(self):
        model, example, coupling, masks = setting()
        before = copy.deepcopy(model.state_dict())

        def fail(*_):
            raise RuntimeError("out of memory")

        hook = model.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            sc.narrow(model, masks, example, coupling=coupling, inplace=True)
        hook.remove()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_mode_and_gradients(self):
        model, example, coupling, masks = setting()
        model.train()
        model.a[0].weight.requires_grad_(requires_grad=False)
        state = torch.get_rng_state()
        sc.narrow(model, masks, example, coupling=coupling, inplace=True)
        assert all(m.training for m in model.modules())
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["a.0.weight"]
        assert torch.equal(state, torch.get_rng_state())

    def test_dtype_follows(self):
        model, example, _, masks = setting()
        thin = sc.narrow(model.double(), masks, example.double())
        assert {p.dtype for p in thin.parameters()} == {torch.float64}
        assert difference(masked(model, masks), thin, example.double()) < 1e-12


class TestTwice:
    @pytest.mark.parametrize("name", NAMES)
    def test_the_file_of_a_model_narrowed_twice_loads_into_its_class(self, name, tmp_path):
        model, example = make(name), inputs(name)
        thin = model
        for seed in range(2):
            coupling = sc.couple(thin, example)
            masks = draw_masks(thin, coupling.groups(), 0.4, seed=seed)
            if coupling.structure_for(masks).kept:
                thin = sc.narrow(thin, masks, example, coupling=coupling)
        sc.save(thin, tmp_path / "twice.safetensors")
        again = sc.load(tmp_path / "twice.safetensors", make(name, seed=9))
        assert difference(thin, again.model.eval(), inputs(name, 3, 4)) < 1e-6
        assert structure_of(again.model) == structure_of(thin)


class TestOptimizer:
    @pytest.mark.parametrize("name", ["residual", "gated", "attention_fused", "lstm"])
    @pytest.mark.parametrize(
        "make_optimizer",
        [
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
            lambda p: torch.optim.Adam(p, 0.01),
            lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True),
        ],
        ids=["sgd", "adam", "adamw"],
    )
    def test_training_continues_as_with_held_masks(self, name, make_optimizer):
        model, example, coupling, masks = setting(name)
        optimizer = make_optimizer(model.parameters())
        steps(model, optimizer, example, 2)
        other = copy.deepcopy(model)
        held = make_optimizer(other.parameters())
        held.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        sc.narrow(model, masks, example, coupling=coupling, optimizer=optimizer)
        hold = sc.hold(masks.apply_(other), masks, held)
        assert difference(other, model, example) < 1e-5
        steps(model, optimizer, example, 3)
        steps(other, held, example, 3)
        hold.release()
        assert difference(other, model, inputs(name, 2, 8)) < 1e-4

    def test_state_has_the_shape_of_its_parameter(self):
        model, example, coupling, masks = setting()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        steps(model, optimizer, example, 1)
        sc.narrow(model, masks, example, coupling=coupling, optimizer=optimizer)
        for parameter in model.parameters():
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
            assert optimizer.state[parameter]["step"].dim() == 0


def steps(model, optimizer, example, count):
    for _ in range(count):
        optimizer.zero_grad()
        model(example).square().mean().backward()
        optimizer.step()


class TestRefusals:
    @pytest.fixture
    def wrong_rule(self):
        """As a user might write it: says that a softmax over channels lets channels go."""
        before = dict(RULES)
        rule("_softmax")(lambda dye, out, x, *_: dye.of(x))
        yield
        RULES.clear()
        RULES.update(before)

    def test_a_wrong_rule_is_found_out_and_everything_put_back(self, wrong_rule):
        net = nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1), nn.Linear(8, 3))
        before, example = copy.deepcopy(net), torch.randn(2, 4)
        coupling = sc.couple(net, example)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        steps(net, optimizer, example, 1)
        before = copy.deepcopy(net)
        momentum = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in net.named_parameters()}
        gradients = {n: p.grad.clone() for n, p in net.named_parameters()}
        masks = draw_masks(net, coupling.groups(), 0.5, seed=0)
        with pytest.raises(NarrowingFailed, match=r"output 0 .* differs from the masked one by .*explain.*ignore="):
            sc.narrow(net, masks, example, coupling=coupling, optimizer=optimizer)
        assert difference(before, net, example) == 0
        assert [m.out_features for m in net if isinstance(m, nn.Linear)] == [8, 3]
        assert structure_of(net) is None
        for name, parameter in net.named_parameters():
            assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum[name])
            assert torch.equal(parameter.grad, gradients[name])
        steps(net, optimizer, example, 1)

    def test_masks_may_be_a_plain_dictionary(self):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        kept = torch.arange(8) < 6
        masks = {"0.weight": kept[:, None].expand(8, 4), "0.bias": kept, "2.weight": kept.expand(3, 8)}
        assert sc.narrow(net, masks, torch.randn(2, 4))[0].out_features == 6

    def test_noise_in_the_forward_cannot_be_compared(self):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

            def forward(self, x):
                h = self.a(x)
                return self.b(h + torch.randn_like(h))

        net = Noisy()
        with torch.no_grad():  # the first units leave, so that the rest would draw the noise of others
            net.a.weight.copy_(torch.arange(1.0, 7.0)[:, None].expand(6, 4))
        with pytest.raises(NarrowingFailed, match="draws random numbers"):
            sc.prune(net, sparsity=0.5, granularity="channel", scope="layer", example_inputs=torch.ones(1, 4))

    @pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
    def test_a_model_that_does_not_run_narrowed(self):
        """PyTorch takes an LSTM whose projection is as wide as its state for one without projection."""
        name = "lstm_projected"
        model, example = make(name), inputs(name)
        before = copy.deepcopy(model)
        coupling = sc.couple(model, example)
        masks = draw_masks(model, coupling.groups(), 0.99, seed=0)
        with pytest.raises(NarrowingFailed, match="does not run"):
            sc.narrow(model, masks, example, coupling=coupling, inplace=True)
        assert (model.cell.hidden_size, model.cell.proj_size) == (10, 6)
        assert difference(before, model, example) == 0

    def test_unstructured_masks_free_no_channel(self):
        model, example = make("residual"), inputs("residual")
        masks = sc.prune(model, sparsity=0.5).masks
        with pytest.raises(NothingToPrune, match="granularity='channel'"):
            sc.narrow(model, masks, example)

    def test_masks_of_another_model(self):
        with pytest.raises(WrongModel):
            sc.narrow(make("dense_concat"), setting()[3], inputs("dense_concat"))

    def test_channels_masked_in_some_places_only_stay(self):
        model, example, coupling, masks = setting()
        some = sc.Masks({n: m for n, m in masks.items() if n not in {"stem.0.weight", "a.0.weight"}})
        thin = sc.narrow(model, some, example, coupling=coupling)
        assert thin.stem[0].out_channels == 12
        assert thin.c[0].out_channels == 8
        assert difference(masked(model, some), thin, inputs("residual", 3, 4)) < 1e-5

    def test_zeros_inside_what_stays_are_kept(self):
        model, example, coupling, masks = setting()
        both = masks & sc.prune(model, sparsity=0.3).masks
        thin = sc.narrow(model, both, example, coupling=coupling)
        assert difference(masked(model, both), thin, example) < 1e-5
        assert any((p == 0).any() for p in thin.parameters())

    def test_narrowing_twice(self):
        model, example = make("residual"), inputs("residual")
        once = sc.prune(model, sparsity=0.3, granularity="channel", scope="layer", example_inputs=example)
        twice = sc.prune(once.model, sparsity=0.3, granularity="channel", scope="layer", example_inputs=example)
        assert twice.model.stem[0].out_channels < once.model.stem[0].out_channels
        assert difference(masked(once.model, twice.masks), twice.model, example) < 1e-5


def pruned(name="residual", **options):
    options = {"sparsity": 0.5, "scope": "layer"} | options
    return sc.prune(make(name), granularity="channel", example_inputs=inputs(name), **options)


class TestPrune:
    @settings(max_examples=10)
    @given(sparsity=st.floats(0.05, 0.95), scope=st.sampled_from(["global", "layer"]))
    def test_counts_are_exact_and_a_unit_stays(self, sparsity, scope):
        model, example = make("residual"), inputs("residual")
        groups = sc.couple(model, example).groups()
        thin = sc.prune(model, sparsity=sparsity, granularity="channel", scope=scope, example_inputs=example).model
        left = [thin.stem[0].out_channels, thin.a[0].out_channels, thin.c[0].out_channels]
        assert min(left) >= 1
        if scope == "layer":
            wanted = {g.name: g.units - sparsity * g.units for g in groups}
            assert all(abs(n - w) <= 1 for n, w in zip(left, wanted.values(), strict=True))

    def test_the_least_important_unit_leaves(self):
        net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[4.0, 4], [1, 1], [2, 2], [3, 3]]))
            net[2].weight.copy_(torch.tensor([[1.0, 1, 9, 1]]))
        masks = sc.prune(net, sparsity=0.5, granularity="channel", example_inputs=torch.ones(1, 2)).masks
        # mean |w| over the three weights of each unit: 9/3, 3/3, 13/3, 7/3
        assert masks["0.weight"].tolist() == [[True, True], [False, False], [True, True], [False, False]]
        assert masks["2.weight"].tolist() == [[True, False, True, False]]

    def test_round_to_multiples(self):
        class Wide(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 20, 3), nn.ReLU(), nn.Conv2d(20, 6, 1))

        for sparsity in (0.3, 0.5, 0.95):
            thin = sc.prune(
                Wide(), sparsity=sparsity, granularity="channel", example_inputs=torch.ones(1, 3, 8, 8), round_to=8
            ).model
            assert all(n % 8 == 0 for n in widths(thin)[:2])
            assert widths(thin)[2] == 6
        with pytest.raises(BadSparsity, match="round_to=0"):
            pruned(round_to=0)

    def test_minimum_widths(self):
        assert min(widths(pruned(sparsity=0.95, min_kept=5).model)) >= 5

    def test_overrides_by_name(self):
        model = pruned(overrides={"a.*": 0.0}).model
        assert (model.a[0].out_channels, model.stem[0].out_channels) == (8, 6)

    def test_ignored_layers(self):
        result = pruned(ignore=["stem"])
        assert result.model.stem[0].out_channels == 12
        assert result.model.a[0].out_channels == 4

    def test_heads_inside(self):
        whole = pruned("attention_vision").model.attention
        inside = pruned("attention_vision", heads="inside").model.attention
        assert (whole.num_heads, whole.head_dim) == (2, 4)
        assert (inside.num_heads, inside.head_dim) == (4, 2)

    @pytest.mark.parametrize("method", ["magnitude", "random", "taylor", "snip"])
    def test_every_criterion(self, method):
        task = sc.Task([inputs("residual", 4)], loss=lambda model, batch: model(batch).square().mean())
        result = pruned(method=method, task=task)
        assert widths(result.model)[0] == 6
        assert difference(masked(make("residual"), result.masks), result.model, inputs("residual", 3, 4)) < 1e-5

    def test_seeds_of_random(self):
        assert pruned(method="random", seed=1).masks == pruned(method="random", seed=1).masks
        assert pruned(method="random", seed=1).masks != pruned(method="random", seed=2).masks

    def test_the_receipt(self):
        report = pruned(round_to=2).report
        assert report.after.params < 0.5 * report.before.params
        assert report.after.macs < 0.6 * report.before.macs
        assert "widths in multiples of 2" in report.method
        assert any("explain" in note for note in report.notes)

    def test_nothing_rounds_to_nothing_and_says_so(self):
        result = pruned(sparsity=0.01)
        assert any("Nothing was removed" in note for note in result.report.notes)
        assert widths(result.model) == widths(make("residual"))

    def test_what_is_missing_or_wrong(self):
        with pytest.raises(NeedsTask, match="example_inputs="):
            sc.prune(make("residual"), sparsity=0.5, granularity="channel")
        with pytest.raises(NothingToPrune, match="no channel of Linear may leave"):
            sc.prune(nn.Linear(3, 3), sparsity=0.5, granularity="channel", example_inputs=torch.ones(1, 3))
        with pytest.raises(UnknownName):
            pruned(round_too=8)
