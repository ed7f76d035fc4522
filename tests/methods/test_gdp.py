"""GDP: the update by hand, the score by autograd, units that leave and come back, and resuming bit for bit."""

import copy
import gc
import io

import pytest
import torch
from tests.coupling.tricks import difference, inputs, make
from torch import nn

import secateur as sc
from secateur.coupling.channels import Channels
from secateur.methods import GDP
from secateur.training.listening import Ear
from secateur.training.sleeping import Sleep, reading_places

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def convnet(seed=0, norm=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(8)] if norm else [nn.Identity(), nn.Identity()]
        layers = [nn.Conv2d(3, 8, 3), norms[0], nn.ReLU(), nn.Conv2d(8, 8, 3), norms[1], nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def batches(steps):
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(4, 3, 6, 6, generator=generator) for _ in range(steps)]


def advance(model, optimizer, run, some, each=lambda: None):
    for x in some:
        optimizer.zero_grad()
        (model(x).square().sum(1) - x.mean((1, 2, 3))).square().mean().add(run.penalty()).backward()
        optimizer.step()
        run.step()
        each()


def started(method, model=None, optimizer="sgd", example=X, **options):
    model = convnet() if model is None else model
    made = OPTIMIZERS[optimizer](model.parameters())
    return model, made, method.start(model, made, example_inputs=example, **options)


def alive(run, name="0.weight"):
    return run.masks[name].flatten(1).any(1)


class TestSleep:
    def test_the_update_is_that_of_the_whole_weights_by_the_gradient_of_the_masked_ones(self):
        """A loop by hand: forward with W (.) m, the optimizer steps on W with dL/d(W (.) m); to the bit."""
        model, theirs = convnet(), convnet()
        one, other = OPTIMIZERS["sgd"](model.parameters()), OPTIMIZERS["sgd"](theirs.parameters())
        places = reading_places(model, sc.couple(model, X), X)
        sleep = Sleep(model, places, one)
        keep = {key: torch.arange(8) % 3 > 0 for key in places}
        sleep.fall_asleep(keep)
        masks = {"3.weight": keep["0.weight"].view(1, 8, 1, 1), "8.weight": keep["3.weight"].view(1, 8)}
        for x in batches(5):
            whole = {name: theirs.get_parameter(name).detach().clone() for name in masks}
            for name, mask in masks.items():
                theirs.get_parameter(name).data.mul_(mask)
            for net, optimizer in ((model, one), (theirs, other)):
                optimizer.zero_grad()
                net(x).square().mean().backward()
            for name in masks:
                theirs.get_parameter(name).data.copy_(whole[name])
            one.step()
            other.step()
        sleep.wake()
        for ours, by_hand in zip(model.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(ours, by_hand)

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_what_sleeps_takes_its_part_of_each_step(self, optimizer):
        """One step from the same place: what is out moves by ``pace`` times what it moves by at full pace, the rest alike."""
        moved = {}
        for pace in (1.0, 0.25, None, 0.0):
            model = convnet()
            steps = OPTIMIZERS[optimizer](model.parameters())
            sleep = Sleep(model, reading_places(model, sc.couple(model, X), X), steps, pace=pace)
            sleep.fall_asleep({key: torch.arange(8) > 2 for key in sleep.keep})
            before = model[3].weight.detach().clone(), sleep.state_dict()["whole"]["3.weight"]
            model(X).square().mean().backward()
            steps.step()
            assert not model[3].weight[:, :3].any()
            sleep.wake()
            moved[pace] = (model[3].weight.detach() - before[1])[:, :3]
            awake = model[3].weight.detach()[:, 3:]
            assert torch.equal(awake, moved.setdefault("awake", awake))
        assert moved[1.0].abs().min() > 0
        assert torch.allclose(moved[0.25], moved[1.0] / 4, atol=1e-7)
        assert torch.allclose(moved[None], moved[1.0] / 3, atol=1e-7)  # three sleep in each group
        assert not moved[0.0].any()

    def test_sharing_a_step_the_sleepers_do_not_wreck_what_they_wake_in(self):
        """30 of 40 hidden units sleep for 40 steps; then all are in: at the paper's pace the loss is many times what it was before."""
        losses = {}
        for pace in (1.0, None):
            torch.manual_seed(0)
            model, teacher = (nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 3)) for _ in range(2))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            x = torch.randn(256, 20)
            y = teacher(x).detach()
            sleep = Sleep(model, reading_places(model, sc.couple(model, x[:1]), x[:1]), optimizer, pace=pace)
            before = float((model(x) - y).square().mean().detach())
            sleep.fall_asleep({key: torch.arange(40) < 10 for key in sleep.keep})
            for _ in range(40):
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()
            sleep.wake()
            losses[pace] = float((model(x) - y).square().mean().detach())
        assert losses[None] < before < losses[1.0] / 4

    @pytest.mark.parametrize(
        "name",
        [
            "residual",
            "dense_concat",
            "attention_fused",
            "multihead",
            "lstm",
            "tied",
            "grouped",
            "depthwise_multiplier",
            "gated",
        ],
    )
    def test_what_sleeps_is_out_exactly(self, name):
        model, x = make(name), inputs(name)
        coupling = sc.couple(model, x)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sleep = Sleep(model, reading_places(model, coupling, x), optimizer)
        keep = {key: torch.arange(len(k)) % 2 > 0 for key, k in sleep.keep.items()}
        keep = {key: k if k.any() else ~k for key, k in keep.items()}
        channels = Channels(groups=coupling.groups())
        values = {n: p.detach() for n, p in model.named_parameters()}
        masks = channels.spread(keep, sc.Scores(values))
        expected = masks.apply_(copy.deepcopy(model))
        sleep.fall_asleep(keep)
        assert difference(expected, model, inputs(name, 3, 4)) < 1e-5
        assert difference(sc.narrow(expected, masks, x, coupling=coupling), model, inputs(name, 3, 4)) < 1e-5

    def test_a_layer_that_the_table_does_not_know_is_silenced_everywhere(self):
        class Odd(nn.Module):
            """Reads its channels with a parameter that no rule of layers names, beside a layer that one does."""

            def __init__(self):
                super().__init__()
                self.make, self.read, self.other = nn.Linear(3, 6), nn.Linear(6, 2), nn.Parameter(torch.randn(6, 2))

            def forward(self, x):
                h = self.make(x).relu()
                return self.read(h) + h @ self.other

        torch.manual_seed(0)
        model, x = Odd(), torch.randn(5, 3)
        ((_, places),) = reading_places(model, sc.couple(model, x), x).items()
        assert set(places) == {("make.weight", 0), ("make.bias", 0), ("read.weight", 1), ("other", 0)}
        known = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
        ((_, places),) = reading_places(known, sc.couple(known, x), x).items()
        assert set(places) == {("2.weight", 1)}

    def test_a_filter_without_batch_norm_keeps_its_gradient_though_it_is_out(self):
        """Were weight and bias masked, ReLU'(0) = 0 would end all learning: here the weights that read it see its activation."""
        model = convnet(norm=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sleep = Sleep(model, reading_places(model, sc.couple(model, X), X), optimizer)
        sleep.fall_asleep({key: torch.arange(8) != 0 for key in sleep.keep})
        before = sleep.state_dict()["whole"]["3.weight"][:, 0].clone()
        model(X).square().mean().backward()
        assert model[3].weight.grad[:, 0].abs().sum() > 0
        optimizer.step()
        assert not model[3].weight[:, 0].any()
        sleep.wake()
        assert not torch.equal(model[3].weight[:, 0], before)

        dead = copy.deepcopy(model)
        dead.zero_grad()
        for parameter, index in ((dead[0].weight, 0), (dead[0].bias, 0)):
            parameter.data[index] = 0
        dead[3].weight.data[:, 0] = 0
        dead(X).square().mean().backward()
        assert not dead[0].weight.grad[0].any()
        assert not dead[3].weight.grad[:, 0].any()

    def test_readers_that_do_not_train_are_refused(self):
        model = convnet()
        some = [p for name, p in model.named_parameters() if not name.startswith("8")]
        with pytest.raises(sc.errors.WrongModel, match=r"reads the channels of '3.weight' .*ignore=\['3.weight'\]"):
            GDP(sparsity=0.5, end_step=50).start(model, torch.optim.SGD(some, lr=0.1), example_inputs=X)


class TestScore:
    def test_for_filters_with_relu_it_is_the_papers_sum_over_the_filter_and_its_bias(self):
        model = convnet(norm=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ear = Ear(model, Sleep(model, reading_places(model, sc.couple(model, X), X), optimizer), optimizer)
        ear.open()
        expected = torch.zeros(8)
        for x in batches(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            conv = model[0]
            products = (conv.weight.grad * conv.weight).flatten(1).sum(1) + conv.bias.grad * conv.bias
            expected += products.detach().abs() / 3
            optimizer.step()
        torch.testing.assert_close(ear.close()["0.weight"], expected, rtol=1e-4, atol=1e-7)

    def test_behind_a_batch_norm_the_papers_sum_is_nothing_and_the_gates_is_not(self):
        model = convnet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sleep = Sleep(model, reading_places(model, sc.couple(model, X), X), optimizer)
        model(X).square().mean().backward()
        paper = (model[0].weight.grad * model[0].weight).flatten(1).sum(1).abs().max()
        assert paper < 1e-4 * sleep.evidence()["0.weight"].abs().max()

    def test_listening_leaves_nothing_but_scores(self):
        model, optimizer, run = started(GDP(sparsity=0.5, every=10, batches=4, end_step=50))
        some = batches(10)
        advance(model, optimizer, run, some[:6])
        assert run.listening
        before = copy.deepcopy(model.state_dict())
        moments = copy.deepcopy(optimizer.state_dict()["state"])
        advance(model, optimizer, run, some[6:9])
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
        advance(model, optimizer, run, some[9:])
        assert not run.listening
        for name, buffer in model.named_buffers():
            assert torch.equal(before[name], buffer), name
        now = optimizer.state_dict()["state"]
        assert all(torch.equal(moments[k]["momentum_buffer"], now[k]["momentum_buffer"]) for k in moments)

    def test_scores_are_averaged_over_batches_and_remembered(self):
        model, optimizer, run = started(GDP(sparsity=0.5, every=4, batches=2, end_step=50, memory=0.75))
        over = run._turnover
        advance(model, optimizer, run, batches(4))
        first = {key: score.clone() for key, score in over.scores.items()}
        heard = []
        keep = over.ear.close

        def close():
            heard.append(keep())
            return heard[-1]

        over.ear.close = close
        advance(model, optimizer, run, batches(4))
        for key, score in over.scores.items():
            torch.testing.assert_close(score, 0.75 * first[key] + 0.25 * heard[0][key])


class TestTurnover:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_a_closure_does_what_a_loop_does(self, optimizer):
        """Lightning hands a closure to ``optimizer.step``, so forward and backward run inside of it; to the bit."""
        method = GDP(sparsity=0.5, every=6, batches=2, end_step=20)
        model, steps, run = started(method, optimizer=optimizer)
        advance(model, steps, run, batches(26))
        other, others, again = started(method, optimizer=optimizer)
        for at, x in enumerate(batches(26)):

            def closure(x=x):
                others.zero_grad()
                loss = (other(x).square().sum(1) - x.mean((1, 2, 3))).square().mean()
                loss.backward()
                return loss

            others.step(closure) if at % 2 else others.step(closure=closure)
            again.step()
        assert again.history == run.history
        for ours, theirs in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)

    def test_a_unit_leaves_and_comes_back(self):
        """Two hidden units see one input each; the target is the first input for a while, then the second."""
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(2))
            model[1].weight.fill_(0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run = GDP(sparsity=0.5, every=20, batches=5, end_step=90, memory=0.0).start(
            model, optimizer, example_inputs=torch.ones(1, 2)
        )
        generator, seen = torch.Generator().manual_seed(0), []
        for step in range(100):
            x = torch.randn(16, 2, generator=generator)
            y = x[:, :1] if step < 50 else x[:, 1:]
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
            run.step()
            if run.history and run.history[-1]["step"] == run._turnover.steps:
                seen.append(alive(run).tolist())
        assert seen[0] == seen[1] == [True, False]
        assert seen[-1] == [False, True]
        pruned = run.finish()
        assert (pruned.report.settings["left"], pruned.report.settings["returned"]) == (2, 1)
        assert "2 units left, and 1 came back" in pruned.report.notes[0]
        x = torch.randn(16, 2, generator=generator)
        assert (pruned.model(x) - x[:, 1:]).abs().max() < 0.5

    @pytest.mark.parametrize("norm", [True, False])
    def test_units_come_back_in_an_ordinary_training(self, norm):
        method = GDP(sparsity=0.5, every=5, batches=2, end_step=60, memory=0.0)
        model, optimizer, run = started(method, convnet(norm=norm), "adam")
        states, ever = [alive(run)], set()

        def look():
            now = alive(run)
            ever.update((now & ~states[-1]).nonzero().flatten().tolist())
            states.append(now)

        advance(model, optimizer, run, batches(62), each=look)
        pruned = run.finish()
        history = pruned.report.settings["history"]
        assert ever
        assert pruned.report.settings["returned"] == sum(entry["returned"] for entry in history) > 0
        assert pruned.report.settings["left"] == sum(entry["left"] for entry in history)
        assert pruned.report.settings["left"] - pruned.report.settings["returned"] == 8
        assert all(entry["units"] == 8 for entry in history)

    def test_the_forward_is_the_narrowed_networks_all_along(self):
        model, optimizer, run = started(GDP(sparsity=0.5, every=6, batches=2, end_step=40))
        coupling = sc.couple(model, X)
        checked = []

        def look():
            if not run.listening and run.masks.kept < run.masks.total and run._turnover.steps <= 40:
                thin = sc.narrow(model, run.masks, X, coupling=coupling)
                checked.append(difference(thin, model, torch.randn(3, 3, 6, 6)))

        model.eval()
        advance(model, optimizer, run, batches(40), each=look)
        assert len(checked) > 15
        assert max(checked) < 1e-5

    def test_nothing_leaves_in_warmup_and_masks_are_fixed_in_the_end(self):
        model, optimizer, run = started(GDP(sparsity=0.5, every=5, batches=2, warmup=8), total_steps=50)
        kept = []
        advance(model, optimizer, run, batches(50), each=lambda: kept.append(run.masks))
        assert all(mask.kept == mask.total for mask in kept[:12])
        assert [entry["step"] for entry in run.history] == [13, 18, 23, 28, 30]
        assert kept[12].kept < kept[12].total
        assert all(mask == kept[-1] for mask in kept[29:])
        for name, mask in run.masks.items():
            assert not model.get_parameter(name).detach()[~mask].any(), name

    def test_a_criterion_of_ones_own_costs_no_steps(self):
        x = batches(2)
        task = sc.Task(x, loss=lambda model, batch: model(batch).square().mean())
        method = GDP(sparsity=0.5, every=5, batches=2, end_step=20, criterion="taylor_gate")
        model, optimizer, run = started(method, task=task)
        listening = []
        advance(model, optimizer, run, batches(24), each=lambda: listening.append(run.listening))
        assert not any(listening)
        assert "TaylorGate" in run.finish().report.method
        with pytest.raises(sc.errors.NeedsTask):
            started(method)

    def test_a_criterion_that_is_silent_about_a_group_leaves_it(self):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
        )
        method = GDP(sparsity=0.5, every=3, batches=1, end_step=9, criterion="bn_scale")
        _, optimizer, run = started(method, model)
        for x in batches(9):
            model(x).square().mean().backward()
            optimizer.step()
            run.step()
        pruned = run.finish()
        assert (pruned.model[0].out_channels, pruned.model[3].out_channels) == (2, 4)


METHODS = {
    "sparsity": GDP(sparsity=0.5, every=5, batches=2, warmup=3, end_step=24),
    "budget": GDP(budget="macs:40%", every=6, batches=3, end_step=20, memory=0.0, min_kept=2),
    "layer": GDP(sparsity=0.5, every=4, batches=1, end_step=18, scope="layer", round_to=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_in_the_same_bits(name, optimizer):
    some, method = batches(28), METHODS[name]
    model, first, run = started(method, optimizer=optimizer)
    states = []

    def keep():
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": first.state_dict(), "run": run.state_dict()}, file)
        states.append(file)

    advance(model, first, run, some, each=keep)
    straight = run.finish()
    for stop in (4, 7, 15, 24) if optimizer == "sgd" else (1, 6, 20):
        states[stop - 1].seek(0)
        state = torch.load(states[stop - 1], weights_only=True)
        fresh, second, again = started(method, convnet(seed=9), optimizer)
        fresh.load_state_dict(state["model"])
        second.load_state_dict(state["optimizer"])
        again.load_state_dict(state["run"])
        advance(fresh, second, again, some[stop:])
        resumed = again.finish()
        assert resumed.masks == straight.masks, stop
        assert resumed.report.settings == straight.report.settings
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True)
        ), stop


@pytest.mark.parametrize("name", METHODS)
def test_what_comes_back_is_narrow_and_equals_the_masked_model(name, tmp_path):
    model, optimizer, run = started(METHODS[name])
    advance(model, optimizer, run, batches(26))
    pruned = run.finish()
    assert difference(model.eval(), pruned.model.eval(), torch.randn(3, 3, 6, 6)) < 1e-5
    widths = pruned.model[0].out_channels, pruned.model[3].out_channels
    if name == "budget":
        assert pruned.report.after.macs <= 0.4 * pruned.report.before.macs
        assert min(widths) >= 2
        assert any("Budget: at most" in note for note in pruned.report.notes)
    else:
        assert sum(widths) == 8
    if name == "layer":
        assert widths == (4, 4)
    sc.save(pruned, tmp_path / "gdp.safetensors")
    again = sc.load(tmp_path / "gdp.safetensors", convnet(seed=3))
    assert difference(again.model.eval(), pruned.model, X) == 0
    assert again.masks == pruned.masks


@pytest.mark.parametrize("name", ["residual", "attention_fused", "lstm", "tied"])
def test_on_networks_of_every_kind(name):
    model, x = make(name), inputs(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run = GDP(sparsity=0.4, every=4, batches=2, end_step=12).start(model, optimizer, example_inputs=x)
    for step in range(14):
        optimizer.zero_grad()
        model(inputs(name, 4, seed=step)).square().mean().backward()
        optimizer.step()
        run.step()
    pruned = run.finish()
    assert pruned.masks.kept < pruned.masks.total
    assert difference(model, pruned.model, inputs(name, 3, 4)) < 1e-4


def test_gradient_accumulation_and_scaled_losses_rank_alike():
    found = []
    for scale, parts in ((1.0, 1), (128.0, 2)):
        model, optimizer, run = started(GDP(sparsity=0.5, every=3, batches=2, end_step=6), convnet(norm=False))
        for x in batches(3):
            optimizer.zero_grad()
            for part in x.chunk(parts):
                (model(part).square().mean() * scale / parts).backward()
            for parameter in model.parameters():
                parameter.grad /= scale
            optimizer.step()
            run.step()
        found.append((run.masks, run._turnover.scores))
    assert found[0][0] == found[1][0]
    for key, score in found[0][1].items():
        torch.testing.assert_close(score, found[1][1][key], rtol=1e-4, atol=1e-7)


def test_refusals_leave_no_hook():
    model = convnet()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for wrong, options, error, says in [
        (GDP(sparsity=0.5), {}, sc.errors.BadSchedule, "when are masks fixed"),
        (GDP(sparsity=0.5), {"total_steps": 20}, sc.errors.BadSchedule, "fixed at step 12"),
        (GDP(sparsity=0.5, end_step=90), {"total_steps": 80}, sc.errors.BadSchedule, "after total_steps=80"),
        (GDP(end_step=90), {}, sc.errors.BadSparsity, "none was given"),
        (GDP(sparsity=0.9, min_kept=7, end_step=90), {}, sc.errors.BadSparsity, "min_kept=7"),
        (GDP(budget="macs:1%", end_step=90), {}, sc.errors.OverBudget, "budget"),
        (GDP(sparsity=0.5, criterion="movement", end_step=90), {}, sc.errors.NeedsTask, "gathered in training"),
        (GDP(sparsity=0.5, ignore=["nope"], end_step=90), {}, sc.errors.UnknownName, "nope"),
    ]:
        with pytest.raises(error, match=says):
            wrong.start(model, optimizer, example_inputs=X, **options)
    with pytest.raises(sc.errors.NeedsTask, match="example_inputs="):
        GDP(sparsity=0.5, end_step=90).start(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(sc.errors.BadSchedule, match="1 <= batches < every"):
        GDP(sparsity=0.5, every=5, batches=5)
    for wrong in ({"every": 10.5}, {"batches": True}, {"warmup": "a"}):
        with pytest.raises(sc.errors.BadSchedule, match="needs whole numbers"):
            GDP(sparsity=0.5, **wrong)
    for memory in (1, "a"):
        with pytest.raises(sc.errors.BadSchedule, match=f"memory={memory} must be"):
            GDP(sparsity=0.5, memory=memory)
    with pytest.raises(sc.errors.UnknownName, match="must say of what"):
        GDP(budget=0.5, end_step=90).start(model, optimizer, example_inputs=X)


def test_misuse_is_named():
    _, optimizer, run = started(GDP(sparsity=0.5, every=3, batches=2, end_step=9))
    with pytest.raises(sc.errors.BadSchedule, match="fixed at step 9, but training stopped after 0"):
        run.finish()
    with pytest.raises(sc.errors.BadScores, match="no gradient arrived"):
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.step()
            run.step()
    for wrong in (copy.deepcopy, lambda r: r.__reduce__()):
        with pytest.raises(TypeError, match=r"run.state_dict\(\)"):
            wrong(run)
    other, more, third = started(GDP(sparsity=0.5, every=3, batches=2, end_step=9, ignore=["0"]))
    with pytest.raises(sc.errors.WrongModel, match="its masks do not fit"):
        third.load_state_dict(run.state_dict())
    advance(other, more, third, batches(9))
    with pytest.raises(sc.errors.BadSchedule, match="fixed already"):
        third.load_state_dict(third.state_dict())
    third.finish()
    assert not more._optimizer_step_pre_hooks
    assert not more._optimizer_step_post_hooks


def test_a_second_run_waits_for_the_first():
    method = GDP(sparsity=0.5, every=3, batches=2, end_step=9)
    model, optimizer, run = started(method)
    for other in (optimizer, OPTIMIZERS["adam"](model.parameters())):
        with pytest.raises(sc.errors.BadSchedule, match="in a run that is not finished"):
            method.start(model, other, example_inputs=X)
    run.release()
    again = method.start(model, optimizer, example_inputs=X)
    advance(model, optimizer, again, batches(9))
    assert not any("run.step() was called" in note for note in again.finish().report.notes)


def test_a_run_that_is_dropped_lets_go():
    method = GDP(sparsity=0.5, every=10, batches=3, end_step=40)
    model, optimizer, run = started(method)
    advance(model, optimizer, run, batches(8))
    assert run.listening
    del run
    gc.collect()
    assert not optimizer._optimizer_step_pre_hooks
    before = copy.deepcopy(model.state_dict())
    model(X).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    method.start(model, optimizer, example_inputs=X).release()


def test_steps_that_nobody_took_are_told():
    model, optimizer, run = started(GDP(sparsity=0.5, every=6, batches=4, end_step=12))
    advance(model, optimizer, run, batches(6), each=run.step)
    assert any("run.step() was called 12 times, but the optimizer took 6 steps" in n for n in run.finish().report.notes)
