"""What `couple` says: groups, kinds, reasons, refusals; and what it leaves behind, which is nothing."""

import pytest
import torch
from tests.coupling.tricks import inputs, make
from torch import nn

import secateur as sc
from secateur.coupling import rule
from secateur.coupling.dyeing import RULES
from secateur.errors import UnknownName, UnknownOperation, WrongModel


def convnet():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def kinds(name, **options):
    return [f"{g.units} x {g.kind} of {g.name}" for g in sc.couple(make(name), inputs(name), **options).groups()]


class Sorted(nn.Module):
    """Uses an operation that has no rule."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(torch.linalg.matrix_exp(torch.diag_embed(self.first(x)))[:, 0])


@pytest.fixture
def rules():
    """Rules added by a test go with it."""
    before = dict(RULES)
    yield RULES
    RULES.clear()
    RULES.update(before)


class TestGroups:
    def test_a_group_names_every_place(self):
        (group,) = sc.couple(convnet(), torch.zeros(1, 3, 8, 8)).groups()
        assert (group.units, group.entries, group.kind, group.name) == (8, 1, "channel", "0.weight")
        assert list(group.places) == [
            ("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("3.weight", 1),
            ("1.running_mean", 0), ("1.running_var", 0),
        ]  # fmt: skip
        assert all(torch.equal(index, torch.arange(8)[:, None]) for index in group.places.values())

    def test_flattened_channels_bring_all_their_columns(self):
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))
        (group,) = sc.couple(net, torch.zeros(1, 1, 2, 2)).groups()
        assert group.places["2.weight", 1].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("residual", "12 x channel of stem.0.weight"),
            ("grouped", "2 x convolution group of a.0.weight"),
            ("group_norm", "4 x norm group of 0.weight"),
            ("attention_fused", "4 x head of attention.qkv.weight"),
            ("grouped_query_expand", "2 x head of attention.q.weight"),
            ("multi_query", "4 x head of attention.q.weight"),
            ("gated", "8 x channel of a.weight"),
            ("lstm", "10 x hidden of cell.weight_ih_l0"),
            ("tied", "8 x width of embedding.weight"),
            ("scan", "12 x hidden of into.weight"),
        ],
    )
    def test_kinds_are_found_without_being_told(self, name, expected):
        assert expected in kinds(name)

    def test_inside_heads_the_same_index_leaves_from_every_head(self):
        coupling = sc.couple(make("attention_vision"), inputs("attention_vision"), heads="inside")
        assert not any(group.kind == "head" for group in coupling.groups())
        inside = [g for g in coupling.groups() if ("attention.proj.weight", 1) in g.places]
        assert [(g.units, g.places["attention.proj.weight", 1][0].tolist()) for g in inside] == [(4, [0, 4, 8, 12])]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("attention_by_hand", "width is a size, and its value is calculated with as well"),
            ("multihead", "is the width of a head, which sets its scale"),
            ("attention_fused", "sets the scale 1/sqrt(head width)"),
        ],
    )
    def test_the_width_of_heads_stays_where_it_sets_the_scale(self, name, reason):
        coupling = sc.couple(make(name), inputs(name), heads="inside")
        assert reason in coupling.explain("attention")

    def test_whole_groups_of_a_convolution_or_channels_inside_them(self):
        assert "2 x convolution group of a.0.weight" in kinds("grouped")
        inside = kinds("grouped", heads="inside")
        assert any(text.startswith("4 x") and text.endswith("of a.0.weight") for text in inside)

    def test_the_same_twice(self):
        first, second = (sc.couple(make("dense_concat"), inputs("dense_concat")) for _ in range(2))
        assert [str(g) for g in first.groups()] == [str(g) for g in second.groups()]
        for a, b in zip(first.groups(), second.groups(), strict=True):
            assert all(torch.equal(a.places[p], b.places[p]) for p in a.places)

    def test_values_of_the_example_do_not_matter(self):
        model = make("depthwise_squeeze_excite")
        first, second = (sc.couple(model, inputs("depthwise_squeeze_excite", b, s)) for b, s in ((1, 0), (3, 5)))
        assert [str(g) for g in first.groups()] == [str(g) for g in second.groups()]

    def test_a_module_that_caches_a_tensor_couples_the_same_again(self):
        class Cached(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.kept = nn.Linear(4, 6), nn.Linear(6, 2), None
                self.register_buffer("angles", torch.arange(5.0)[:, None])

            def forward(self, x):
                if self.kept is None:
                    self.kept = self.angles.cos()
                return self.b(self.a(x) + self.kept)

        model = Cached()
        first, second = (sc.couple(model, torch.ones(1, 5, 4)) for _ in range(2))
        assert [str(g) for g in first.groups()] == [str(g) for g in second.groups()] != []
        assert vars(model.kept) == {}


class TestIgnore:
    def test_channels_of_ignored_layers_stay_with_all_they_are_coupled_to(self):
        assert kinds("residual", ignore=["stem"]) == ["8 x channel of a.0.weight", "16 x channel of down.weight"]

    def test_the_reason_says_so(self):
        coupling = sc.couple(make("residual"), inputs("residual"), ignore="stem")
        assert "stem.0.weight is to be left alone (`ignore`)" in coupling.explain("b.0")

    def test_types_and_mistakes(self):
        assert kinds("residual", ignore=[nn.Conv2d]) == []
        with pytest.raises(UnknownName, match="ignore='stemm' matches nothing"):
            kinds("residual", ignore=["stemm"])


class TestExplain:
    def test_the_text_in_full(self):
        text = sc.couple(convnet(), torch.zeros(1, 3, 8, 8)).explain("3")
        assert text == (
            "3.weight[0], 4 entries:\n"
            "  4 may not leave: reaches the model's output (`output`)\n"
            "3.weight[1], 8 entries:\n"
            "  8 channel unit(s) leave together with 0.weight[0], 0.bias[0], 1.weight[0], 1.bias[0], 1.running_mean[0], "
            "1.running_var[0]\n"
            "3.weight[2], 3 entries:\n"
            "  3 may not leave: is a kernel position (`convolution` in '3')\n"
            "3.weight[3], 3 entries:\n"
            "  3 may not leave: is a kernel position (`convolution` in '3')\n"
            "3.bias[0], 4 entries:\n"
            "  4 may not leave: reaches the model's output (`output`)"
        )

    @pytest.mark.parametrize(
        ("name", "layer", "reason"),
        [
            ("attention_fused", "embed", "is normalised together (`native_layer_norm` in 'norm1')"),
            ("rms_norm", "stem", "is reduced over all channels (`mean`)"),
            ("tied", "embedding", "is looked up by index (`embedding` in 'embedding')"),
            ("residual", "stem", "meets 3 inputs of a fixed number (`convolution` in 'stem.0')"),
        ],
    )
    def test_reasons_name_the_operation_and_the_module(self, name, layer, reason):
        assert reason in sc.couple(make(name), inputs(name)).explain(layer)

    def test_reasons_reach_through_ties(self):
        net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.LayerNorm(4))
        assert "is normalised together (`native_layer_norm` in '3')" in sc.couple(net, torch.ones(1, 2)).explain(
            "2.bias"
        )

    def test_every_name_of_a_tied_weight_and_a_reused_module(self):
        assert "8 width unit(s)" in sc.couple(make("tied"), inputs("tied")).explain("head")
        assert "12 hidden unit(s)" in sc.couple(make("reused"), inputs("reused")).explain("again")

    def test_layers_that_the_example_does_not_reach(self):
        net = convnet()
        net.add_module("spare", nn.Linear(2, 2))
        net.forward = lambda x: nn.Sequential.forward(net[:4], x)
        coupling = sc.couple(net, torch.zeros(1, 3, 8, 8))
        assert "2 may not leave: is not used in this example (`couple`)" in coupling.explain("spare")
        assert len(coupling.groups()) == 1

    def test_an_unknown_name_lists_some_that_exist(self):
        with pytest.raises(UnknownName, match=r"'conv9' is no module or tensor of this network; there are: 0\.weight"):
            sc.couple(convnet(), torch.zeros(1, 3, 8, 8)).explain("conv9")


class TestRules:
    def test_an_unknown_operation_names_itself_its_module_and_the_rule_to_add(self):
        net = nn.Sequential(nn.Identity(), Sorted())
        with pytest.raises(UnknownOperation) as caught:
            sc.couple(net, torch.zeros(2, 6))
        message = str(caught.value)
        assert "`linalg_matrix_exp` (in '1')" in message
        assert "@secateur.coupling.rule('linalg_matrix_exp')" in message
        assert "returns dye.of(args[0])" in message

    def test_a_rule_of_the_user(self, rules):
        @rule("linalg_matrix_exp")
        def _(dye, out, x):
            return dye.of(x)

        model = Sorted()
        coupling = sc.couple(model, torch.zeros(2, 6))
        assert [g.units for g in coupling.groups()] == [8] or coupling.groups() == ()

    def test_a_rule_for_an_operator_of_the_user(self, rules):
        @torch.library.custom_op("garden::double", mutates_args=())
        def double(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        double.register_fake(torch.empty_like)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

            def forward(self, x):
                return self.b(double(self.a(x)))

        with pytest.raises(UnknownOperation, match="garden::double"):
            sc.couple(Net(), torch.ones(1, 4))
        rule("garden::double")(lambda dye, out, x: dye.of(x))
        net = Net()
        pruned = sc.prune(net, sparsity=0.5, granularity="channel", example_inputs=torch.ones(1, 4))
        assert pruned.model.a.out_features == 3

    def test_a_rule_whose_layers_do_not_fit_is_told_so(self, rules):
        rule("relu")(lambda dye, out, x: tuple(layer.unsqueeze(0) for layer in dye.of(x)))
        with pytest.raises(
            UnknownOperation, match=r"gave a layer of shape \[1, 1, 8, 6, 6\] for an output of shape \[1, 8"
        ):
            sc.couple(convnet(), torch.zeros(1, 3, 8, 8))

    def test_code_that_no_freezing_helps_is_an_error_with_the_cause(self, rules):
        """A rule that couples nothing lets the trial run fail; then what is inside that module stays."""
        rule("relu")(lambda dye, out, x: ())
        coupling = sc.couple(convnet(), torch.zeros(1, 3, 8, 8))
        assert coupling.groups() == ()


class TestUntouched:
    @pytest.mark.parametrize("name", ["attention_by_hand", "gru", "generator_affine"])
    def test_mode_attributes_hooks_and_randomness(self, name):
        model = make(name).train()
        model.requires_grad_(requires_grad=True)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        attributes = [dict(vars(m)) for m in model.modules()]
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        sc.couple(model, inputs(name))
        assert torch.equal(state, torch.get_rng_state())
        assert torch.get_num_threads() == threads
        assert torch.is_grad_enabled()
        assert torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.mkldnn.enabled
        assert all(m.training for m in model.modules())
        for module, was in zip(model.modules(), attributes, strict=True):
            now = vars(module)
            assert now.keys() == was.keys()
            assert all(type(now[k]) is type(was[k]) for k in was)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        for tensor in [*model.parameters(), *model.buffers()]:
            assert vars(tensor) == {}
            assert tensor.grad is None
        assert not nn.modules.module._global_forward_hooks
        assert not nn.modules.module._global_forward_pre_hooks

    def test_also_when_the_model_raises(self):
        model = convnet().train()
        state = torch.get_rng_state()
        with pytest.raises(WrongModel, match=r"did not run on example_inputs \[1, 5, 8, 8\] float32"):
            sc.couple(model, torch.zeros(1, 5, 8, 8))
        assert type(model[0].out_channels) is int
        assert model[0].training
        assert torch.equal(state, torch.get_rng_state())
        assert not nn.modules.module._global_forward_hooks
        assert not nn.modules.module._global_forward_pre_hooks
