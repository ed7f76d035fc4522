"""Second order on networks and data that are not as the books have them: mended or refused, each by name."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import secateur as sc
from secateur.criteria.obd import Obd
from secateur.curvatures.backward import recursive_diagonal
from secateur.curvatures.vetting import vetted
from secateur.errors import BadCalibration, BadSparsity, NeedsTask, UnknownLayer, UnknownName, WrongModel
from secateur.targets import find_targets


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))


def labelled(inputs=None):
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(32, 16, generator=generator) if inputs is None else inputs,
            torch.randint(8, (32,), generator=generator),
        )
        for _ in range(3)
    ]
    return sc.Task(batches, loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))


def plain(*shape):
    generator = torch.Generator().manual_seed(1)
    return sc.Task([torch.randn(*shape, generator=generator) for _ in range(4)])


class Around(nn.Module):
    """The chain, and what a subclass makes of it."""

    def __init__(self):
        super().__init__()
        self.seq, self.extra = net(), nn.Linear(16, 8)

    def forward(self, x):
        return self.finish(self.seq(x), x)

    def finish(self, out, x):
        return out + self.extra(x)


class Scaled(Around):
    def finish(self, out, _):
        return 100 * out


class Named(Around):
    def finish(self, out, _):
        return {"logits": out}


@pytest.mark.parametrize("diagonal", ["recursion", "levenberg"])
class TestRecursion:
    def test_a_chain_that_is_not_the_whole_network_is_refused(self, diagonal):
        with pytest.raises(UnknownLayer, match="computes more than its chain of 3 layers"):
            sc.prune(Around(), "obd", diagonal=diagonal, sparsity=0.5, task=labelled())

    def test_operations_in_place_change_nothing(self, diagonal):
        model = net()
        wanted = sc.prune(model, "obd", diagonal=diagonal, sparsity=0.5, task=labelled()).masks
        model[1].inplace = True
        found = sc.prune(model, "obd", diagonal=diagonal, sparsity=0.5, task=labelled()).masks
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    def scores(self, model, task, diagonal):
        return Obd(diagonal=diagonal)(model, find_targets(model), task).values

    def test_batches_that_only_the_loss_knows(self, diagonal):
        task = labelled()
        named = sc.Task(
            [{"x": x, "y": y, "name": "a"} for x, y in task.batches],
            loss=lambda m, b: nn.functional.cross_entropy(m(b["x"].unflatten(1, (4, 4)).flatten(1)), b["y"]),
        )
        found, wanted = self.scores(net(), named, diagonal), self.scores(net(), task, diagonal)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    def test_one_activation_at_several_places(self, diagonal):
        torch.manual_seed(0)
        layers, relu = [nn.Linear(16, 12), nn.Linear(12, 9), nn.Linear(9, 8)], nn.ReLU()
        one = nn.Sequential(layers[0], relu, layers[1], relu, layers[2])
        many = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        found, wanted = self.scores(one, labelled(), diagonal), self.scores(many, labelled(), diagonal)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        relu.inplace = True
        found = self.scores(one, labelled(), diagonal)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    def test_one_layer_at_several_places_is_the_sum_over_them(self, diagonal):
        torch.manual_seed(0)
        shared, head = nn.Linear(16, 16), nn.Linear(16, 8)
        twin = nn.Linear(16, 16)
        twin.load_state_dict(shared.state_dict())
        found = self.scores(nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), head), labelled(), diagonal)
        apart = nn.Sequential(shared, nn.Tanh(), twin, nn.Tanh(), head)
        places = [
            recursive_diagonal(apart, labelled(), b, levenberg=diagonal == "levenberg") for b in labelled().batches
        ]
        sums = sum(place["0.weight"] + place["2.weight"] for place in places) / 3
        torch.testing.assert_close(found["0.weight"], sums.abs() * shared.weight.detach().square() / 2)

    @pytest.mark.parametrize("layer", [nn.Softmax(1), nn.LayerNorm(12), nn.BatchNorm1d(12, track_running_stats=False)])
    def test_a_layer_without_a_rule_is_named(self, diagonal, layer):
        model = nn.Sequential(nn.Linear(16, 12), layer, nn.Linear(12, 8))
        with pytest.raises(UnknownLayer, match=f"no rule for {type(layer).__name__}; "):
            self.scores(model, labelled(), diagonal)

    def test_inputs_that_were_worked_on_are_no_chain(self, diagonal):
        class Before(Around):
            def forward(self, x):
                return self.seq(self.extra(x).repeat(1, 2))

        with pytest.raises(UnknownLayer, match="computes more than its chain of 3 layers"):
            self.scores(Before(), labelled(), diagonal)


@pytest.mark.parametrize("diagonal", ["hutchinson", "exact", "recursion", "empirical"])
def test_batches_count_by_their_size(diagonal):
    """The same 48 examples in batches of 16 and in batches of 40 and 8."""
    x, y = labelled().batches[0]
    x, y = torch.cat([x, x[:16] + 1]), torch.cat([y, y[:16]])
    found = []
    for sizes in ((16, 16, 16), (40, 8)):
        batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
        task = sc.Task(batches, loss=labelled().loss)
        criterion = Obd(diagonal=diagonal, probes=2000)
        found.append(criterion(net(), find_targets(net()), task).values["2.weight"])
    if diagonal == "hutchinson":  # one draw by another, so only as a whole
        assert found[0].sum() == pytest.approx(float(found[1].sum()), rel=0.05)
    else:
        assert (found[0] - found[1]).abs().max() <= 1e-4 * found[0].max()


def test_receipts_say_labels_and_samples_and_have_controls():
    task = labelled()
    judged = sc.Task(task.batches, loss=task.loss, evaluate=lambda m: -float(task.loss(m, task.batches[0])))
    for method, words in (("obd", "labels of the task, 96 samples"), ("obs", "no labels, 96 samples")):
        report = sc.prune(net(), method, sparsity=0.5, task=judged).report
        assert words in report.method
        assert set(report.controls) == {"magnitude", "random"}
    assert "no labels" in sc.prune(net(), "obd", diagonal="squared", sparsity=0.5, task=judged).report.method


@pytest.mark.parametrize("method", ["obd", "obs", "block_fisher", "layer_obs"])
def test_data_that_say_nothing_are_refused_by_name(method):
    with pytest.raises(BadCalibration, match="every number of the 3 calibration batches is 1"):
        sc.prune(net(), method, sparsity=0.5, task=labelled(torch.ones(32, 16)))
    holed = torch.randn(32, 16)
    holed[3, 5] = torch.nan
    with pytest.raises(BadCalibration, match="batch 0 holds 1 NaN or infinite numbers of 512"):
        sc.prune(net(), method, sparsity=0.5, task=labelled(holed))


def test_a_few_samples_are_enough_to_see_that_they_are_constant():
    with pytest.raises(BadCalibration, match="every number of the 1 calibration batches is 1"):
        sc.prune(net(), "block_fisher", sparsity=0.5, samples=8, task=labelled(torch.ones(32, 16)))


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("obs", {}),
        ("block_fisher", {}),
        ("obd", {}),
        ("obd", {"diagonal": "recursion"}),
        ("obd", {"diagonal": "squared"}),
    ],
)
def test_one_sample_again_and_again_says_nothing(method, how):
    x = torch.randn(1, 16)
    with pytest.raises(BadCalibration, match="all 96 samples of the 3 calibration batches are the same"):
        sc.prune(net(), method, sparsity=0.5, task=labelled(x.expand(32, -1)), **how)
    assert len(list(vetted([x, x]))) == 2  # a single one may be all that there is, and is often handed over twice
    apart = labelled(x.expand(32, -1).clone())
    apart.batches[2][0][7, 3] += 1
    how = how | ({"each": 100} if method == "obs" else {})
    assert sc.prune(net(), method, sparsity=0.5, task=apart, **how).masks.sparsity == pytest.approx(0.5, abs=0.01)


def test_a_small_spread_around_a_large_mean_is_no_constant():
    """And the result is the one without the mean, since biases take it up."""
    task = plain(64, 16)
    found = sc.prune(net(), "layer_obs", sparsity=0.5, scope="layer", task=sc.Task([1e3 + x for x in task.batches]))
    wanted = sc.prune(net(), "layer_obs", sparsity=0.5, scope="layer", task=task)
    same = (found.masks["0.weight"] == wanted.masks["0.weight"]).double().mean()
    assert same > 0.95
    same_every_time = sc.Task([torch.arange(16.0).expand(64, 16)])
    with pytest.raises(BadCalibration, match="takes in the same numbers every time"):
        sc.prune(net(), "layer_obs", sparsity=0.5, task=same_every_time)


@pytest.mark.parametrize("model", [Scaled, Named])
def test_no_bound_where_the_network_does_more_than_its_chain(model):
    assert (
        sc.prune(model(), "layer_obs", sparsity=0.5, ignore=["extra"], task=plain(32, 16)).report.settings["bound"]
        == {}
    )
    assert sc.prune(net(), "layer_obs", sparsity=0.5, task=plain(32, 16)).report.settings["bound"]["measured"] > 0


@pytest.mark.parametrize("solver", ["columns", "exact", "split"])
def test_blocks_that_span_groups_of_a_convolution(solver):
    conv = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=2))
    pruned = sc.prune(conv, "layer_obs", sparsity=0.5, granularity="block:4x1", solver=solver, task=plain(4, 8, 9, 9))
    for mask in pruned.masks.values():
        blocks = mask.flatten(1).reshape(len(mask) // 4, 4, -1)
        assert torch.equal(blocks.any(1), blocks.all(1))
    assert pruned.masks.sparsity == pytest.approx(0.5, abs=0.02)


def test_packed_sequences_weigh_errors_too():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, [4, 3, 2], batch_first=True)
            return self.out(nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])

    assert sc.prune(Reader(), "layer_obs", sparsity=0.5, task=plain(3, 4, 6)).masks.sparsity == pytest.approx(
        0.5, abs=0.01
    )


def test_inference_mode_needs_a_scope_without_gradients():
    class Server(nn.Module):
        def __init__(self):
            super().__init__()
            self.seq = net()

        @torch.inference_mode()
        def forward(self, x):
            return self.seq(x)

    with pytest.raises(NeedsTask, match=r"inference mode.*scope='layer'"):
        sc.prune(Server(), "layer_obs", sparsity=0.5, task=plain(32, 16))
    assert sc.prune(Server(), "layer_obs", sparsity=0.5, scope="layer", task=plain(32, 16)).masks.sparsity == 0.5


def test_a_head_that_is_a_look_up_table_too_stays_whichever_comes_first():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.embed, self.mid = nn.Linear(12, 20, bias=False), nn.Embedding(20, 12), nn.Linear(12, 12)
            self.embed.weight = self.head.weight

        def forward(self, x):
            return self.head(self.mid(self.embed(x)).relu())

    task = sc.Task([torch.arange(20).view(4, 5), torch.arange(20).flip(0).view(4, 5)])
    assert list(sc.prune(Tied(), "layer_obs", sparsity=0.5, task=task).masks) == ["mid.weight"]


def test_named_blocks_that_are_no_chain_are_refused():
    def named(*blocks, model=None):
        sc.prune(model or net(), "layer_obs", sparsity=0.5, blocks=blocks, task=plain(32, 16))

    named("0", "1", "2")
    with pytest.raises(
        UnknownName, match=r"\('2', '0'\) are not in the order in which they run; Sequential runs '0', '2'"
    ):
        named("2", "0")
    with pytest.raises(UnknownName, match=r"\('0', '2'\), run alone.*something runs between two of them"):
        named("0", "2")
    one = nn.Linear(16, 16)
    with pytest.raises(UnknownName, match="'0' runs several times; Sequential runs '0', '2', '0'"):
        named("0", "2", model=nn.Sequential(one, nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), one))


def test_words_that_have_no_say_are_refused():
    task, x = plain(32, 16), torch.zeros(1, 16)
    with pytest.raises(UnknownName, match="blocks= names 'nope'"):
        sc.prune(net(), "layer_obs", sparsity=0.5, blocks=("nope",), task=task)
    with pytest.raises(UnknownName, match="twice, alone or inside another"):
        sc.prune(nn.Sequential(net(), nn.ReLU()), "layer_obs", sparsity=0.5, blocks=("0", "0.2"), task=task)
    with pytest.raises(UnknownName, match="keeps all widths"):
        sc.prune(net(), "layer_obs", sparsity=0.5, granularity="channel", task=task, example_inputs=x)
    with pytest.raises(BadSparsity, match="scope='layer' has no say"):
        sc.prune(net(), "layer_obs", budget="params:50%", scope="layer", task=task, example_inputs=x)


@pytest.mark.parametrize(
    ("method", "loss", "words"),
    [
        ("layer_obs", lambda out, _: (out * torch.nan).mean(), "Task.loss gave nan"),
        ("block_fisher", lambda out, _: (out * torch.nan).mean(), "NaN or infinite"),
        ("layer_obs", lambda out, y: nn.functional.cross_entropy(out, y, reduction="none"), "must give one number"),
        ("layer_obs", lambda out, _: out.mean().detach(), "without a gradient"),
        ("block_fisher", lambda out, _: out.mean().detach(), "without a gradient"),
        ("block_fisher", lambda out, _: out.mean() * 0, "all gradients are zero"),
    ],
)
def test_losses_that_say_nothing(method, loss, words):
    task = sc.Task(labelled().batches, loss=lambda m, b: loss(m(b[0]), b[1]))
    with pytest.raises((NeedsTask, BadCalibration), match=words):
        sc.prune(net(), method, sparsity=0.5, task=task)


def test_stop_rules_under_which_nothing_could_leave():
    task = sc.Task(labelled().batches, evaluate=lambda _: 0.9)
    with pytest.raises(BadSparsity, match=r"above the quality that the network has now, 0\.9"):
        sc.methods.Obs(floor=1.2)(net(), task=task)
    with pytest.raises(BadSparsity, match="most_rise=-1"):
        sc.methods.Obs(most_rise=-1)


@pytest.mark.parametrize("how", [{"sparsity": 0.5}, {"budget": "params:50%"}])
def test_biases_that_a_method_does_not_prune_are_not_promised(how):
    task = sc.Task([torch.randn(8, 6)])
    with pytest.raises(UnknownName, match="'layer_obs' prunes no biases"):
        sc.prune(nn.Linear(6, 4), "layer_obs", include_bias=True, task=task, example_inputs=torch.ones(1, 6), **how)


@pytest.mark.parametrize("method", ["layer_obs", "obs"])
def test_a_batch_that_does_not_fit_is_shown(method):
    with pytest.raises(WrongModel, match=r"did not run on a batch of Task.batches, \[8, 15\] float32: RuntimeError"):
        sc.prune(net(), method, sparsity=0.5, task=sc.Task([torch.randn(8, 15)]))


@pytest.mark.parametrize("method", ["layer_obs", "obs"])
def test_a_model_of_two_inputs_is_told_how_batches_are_read(method):
    batches = [(torch.randn(8, 4), torch.randn(8, 4))]
    with pytest.raises(NeedsTask, match="a tuple or list means"):
        sc.prune(nn.Bilinear(4, 4, 2), method, sparsity=0.5, task=sc.Task(batches))


class Loop(nn.Module):
    """A recurrent network by hand: its layers are called once for every step of a sequence."""

    def __init__(self):
        super().__init__()
        self.inward, self.onward, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        state = x.new_zeros(len(x), 8)
        for step in range(x.shape[1]):
            state = (self.inward(x[:, step]) + self.onward(state)).tanh()
        return self.out(state)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("targets", ["own", "dense"])
def test_sequences_of_all_lengths_are_taken_in_whole(scope, targets):
    torch.manual_seed(0)
    model, lengths = Loop(), (1, 20, 7, 20)
    batches = [torch.randn(32, length, 6) for length in lengths]
    for order in (batches, batches[::-1]):
        how = {"sparsity": 0.5, "scope": scope, "targets": targets, "task": sc.Task(order)}
        pruned = sc.prune(model, "layer_obs", **how)
        samples = {row["name"]: row["samples"] for row in pruned.report.settings["layers"]}
        steps = 32 * sum(lengths)
        assert samples == {"inward.weight": steps, "onward.weight": steps, "out.weight": 32 * len(lengths)}
        assert pruned.model.onward.weight.any()


def test_layers_named_by_hand_leave_the_others_their_errors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 4))
    model[2].weight.data.mul_(5)
    model[0].weight.data.mul_(0.1)
    how = {"sparsity": 0.5, "task": sc.Task(list(torch.randn(192, 20).split(64)))}
    alone = sc.prune(model, "layer_obs", ignore=["4"], **how).masks.sparsities()
    named = sc.prune(model, "layer_obs", overrides={"4": 0.25}, **how).masks.sparsities()
    assert named == alone | {"4.weight": 0.25}


def test_more_than_may_stay_cannot_be_asked_for():
    with pytest.raises(BadSparsity, match="29 units may stay, but min_kept=110 over 2 layers asks for 206"):
        sc.prune(net(), "layer_obs", sparsity=0.9, min_kept=110, task=labelled())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)),
        nn.Sequential(nn.Linear(8, 6), nn.LeakyReLU(20.0), nn.Linear(6, 3)),
    ],
)
def test_no_bound_where_the_theorem_has_none(model):
    x = torch.randn(64, 16, 8) if len(model) == 4 else torch.randn(64, 8)
    found = sc.prune(model, "layer_obs", sparsity=0.5, targets="apart", task=sc.Task([x]))
    assert found.report.settings["bound"] == {}


@dataclass
class Answer:
    logits: torch.Tensor


class Opaque(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = net(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


def test_data_classes_are_looked_into_and_what_has_no_numbers_is_named():
    plain, task = sc.prune(net(), "layer_obs", sparsity=0.5, task=labelled_inputs()), labelled_inputs()
    found = sc.prune(Opaque(Answer), "layer_obs", sparsity=0.5, task=task)
    assert [*found.masks.sparsities().values()] == [*plain.masks.sparsities().values()]
    with pytest.raises(NeedsTask, match="Opaque gives list, in which no floating-point tensor is found"):
        sc.prune(Opaque(lambda out: out.tolist()), "layer_obs", sparsity=0.5, task=task)
    with pytest.raises(NeedsTask, match="Opaque gave a number without a gradient"):
        sc.prune(Opaque(torch.Tensor.detach), "layer_obs", sparsity=0.5, task=task)


def labelled_inputs():
    return sc.Task([x for x, _ in labelled().batches])


def test_samples_without_a_batch_axis():
    whole = labelled_inputs()
    single = sc.Task([x for batch in whole.batches for x in batch])
    found, wanted = (sc.prune(net(), "layer_obs", sparsity=0.5, task=task) for task in (single, whole))
    assert found.masks.kept == wanted.masks.kept


@pytest.mark.parametrize("targets", ["own", "dense", "apart"])
def test_spectral_norm_takes_no_step(targets):
    model = nn.Sequential(spectral_norm(nn.Linear(16, 12)), nn.ReLU(), nn.Linear(12, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sc.prune(model, "layer_obs", sparsity=0.5, targets=targets, task=labelled_inputs())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["layer_obs", "obs", "block_fisher", "obd", "taylor", "magnitude"])
def test_batches_are_no_task(method):
    with pytest.raises(NeedsTask, match=r"task= is list: pass task=sc.Task"):
        sc.prune(net(), method, sparsity=0.5, task=[torch.randn(8, 16)])


class Looking(nn.Module):
    """Decides by its numbers, as masks of transformers do, so that samples cannot be worked on together."""

    def __init__(self):
        super().__init__()
        self.seq = net()

    def forward(self, x):
        return self.seq(x) if bool((x.abs() > 0).any()) else x[..., :8]


@pytest.mark.parametrize(
    "how", [("block_fisher", {}), *(("obs", {"curvature": c, "each": 30}) for c in ("empirical", "sampled", "squared"))]
)
def test_a_network_that_looks_at_numbers_is_worked_on_sample_by_sample(how):
    method, settings = how
    found, wanted = (sc.prune(m, method, sparsity=0.5, task=labelled(), **settings) for m in (Looking(), net()))
    for one, other in zip(found.model.state_dict().values(), wanted.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_stop_rule_that_comes_first_is_told():
    task = labelled_inputs()
    early = sc.prune(net(), "obs", sparsity=0.9, most_rise=1e-3, task=task).report.notes
    assert any("Stopped before the sparsity was reached:" in note for note in early)
    never = sc.prune(net(), "obs", most_rise=0.0, task=task).report.notes
    assert any("the first step already goes beyond" in note for note in never)
    whole = sc.prune(net(), "obs", sparsity=0.5, most_rise=1e9, each=50, task=task).report.notes
    assert not any("Stopped" in note or "removed" in note for note in whole)
