"""Optimal brain damage and surgeon, and the block Fisher, on networks small enough to check."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.allocations.global_ import Global
from secateur.criteria.obd import Obd
from secateur.curvatures.backward import _CURVED, _STRAIGHT, recursive_diagonal
from secateur.curvatures.jacobians import curvature_rows
from secateur.errors import BadSparsity, NeedsTask, UnknownLayer, UnknownName, WrongModel
from secateur.solvers.surgeon import remove_
from secateur.targets import find_targets


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(n=24):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=g).double(), torch.randint(0, 3, (n,), generator=g)


def task(evaluate=None):
    x, y = data()
    return sc.Task([(x, y)], loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), evaluate=evaluate)


def diagonal(kind, **how):
    model = net()
    scores = Obd(diagonal=kind, **how)(model, find_targets(model), task())
    return {n: 2 * s / model.get_parameter(n).detach().square() for n, s in scores.values.items()}


def hessian(model, names, loss):
    own = {n: model.get_parameter(n).detach() for n in names}
    return torch.func.hessian(lambda p: loss(lambda x: torch.func.functional_call(model, p, (x,))))(own)


def test_the_exact_diagonal_is_autograds():
    x, y = data()
    names = ["0.weight", "2.weight"]
    wanted = hessian(net(), names, lambda f: F.cross_entropy(f(x), y))
    found = diagonal("exact")
    for n in names:
        size = found[n].numel()
        torch.testing.assert_close(
            found[n].flatten(), wanted[n][n].reshape(size, size).diagonal().abs(), rtol=1e-8, atol=1e-10
        )


def test_many_probes_come_near_it():
    exact, near = diagonal("exact"), diagonal("hutchinson", probes=400)
    for n in exact:
        assert (exact[n] - near[n]).abs().mean() < 0.25 * exact[n].abs().mean()


def test_the_recursion_is_exact_at_the_top_and_says_where_it_is_not():
    exact, found = diagonal("exact"), diagonal("recursion")
    torch.testing.assert_close(found["2.weight"], exact["2.weight"], rtol=1e-8, atol=1e-10)
    gap = (found["0.weight"] - exact["0.weight"]).abs().mean() / exact["0.weight"].mean()
    assert 0.01 < gap < 2  # cross terms of units in one layer are left out
    assert all((h >= 0).all() for h in recursive_diagonal(net(), task(), task().batches[0], levenberg=True).values())
    with pytest.raises(UnknownLayer, match="LayerNorm"):
        recursive_diagonal(
            nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).double(), task(), task().batches[0], levenberg=True
        )


def hessian_diagonal(model, loss, name):
    weight = model.get_parameter(name).detach()
    size = weight.numel()
    found = torch.autograd.functional.hessian(
        lambda w: loss(lambda x: torch.func.functional_call(model, {name: w}, (x,))), weight
    )
    return found.reshape(size, size).diagonal().view_as(weight)


class Plus3(nn.Module):
    def forward(self, x):
        return x + 3


class Sixth(nn.Module):
    def forward(self, x):
        return x / 6


@pytest.mark.parametrize("kind", [*_STRAIGHT[:-1], *_CURVED], ids=lambda k: k.__name__)
def test_one_unit_has_no_cross_terms(kind):
    """Then the recursion is the exact diagonal, whatever the function is."""
    torch.manual_seed(0)
    x = torch.randn(9, *{nn.Dropout1d: [2], nn.Dropout2d: [2, 2], nn.Dropout3d: [2, 1, 2]}.get(kind, []), 4).double()
    settings = (0.1, 2.0) if kind is nn.Threshold else ()
    model = nn.Sequential(nn.Linear(4, 1), kind(*settings), nn.Identity(), nn.Linear(1, 1)).double().eval()
    found = recursive_diagonal(model, sc.Task([x], loss=lambda m, b: m(b).pow(4).sum()), x, levenberg=False)
    if kind is nn.Hardsigmoid:  # the same function, of which torch has second derivatives
        model[1], model[2] = nn.Sequential(Plus3(), nn.ReLU6()), Sixth()
    for name in ("0.weight", "3.weight"):
        torch.testing.assert_close(
            found[name], hessian_diagonal(model, lambda m: m(x).pow(4).sum(), name), rtol=1e-6, atol=1e-10
        )


def test_batch_norm_is_the_layer_that_it_folds_into():
    torch.manual_seed(0)
    x, norm = torch.randn(20, 4).double(), nn.BatchNorm1d(5).double()
    model = nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 2)).double()
    model(3 * x + 1)
    norm.weight.data.uniform_(0.5, 2)
    model.eval()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    folded[0].weight.data = model[0].weight.detach() * scale.detach()[:, None]
    folded[0].bias.data = ((model[0].bias - norm.running_mean) * scale + norm.bias).detach()
    folded[2].load_state_dict(model[3].state_dict())
    work = sc.Task([x], loss=lambda m, b: m(b).square().sum())
    found, wanted = (recursive_diagonal(m, work, x, levenberg=False)["0.weight"] for m in (model, folded))
    torch.testing.assert_close(found, wanted * scale.detach().square()[:, None])  # d/dw = scale d/d(scale w)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_a_softmax_at_the_end_belongs_to_the_loss(last):
    torch.manual_seed(0)
    x, y = torch.randn(12, 4).double(), torch.randint(3, (12,))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), last).double()

    def loss(m, b):
        out = m(b)
        return nn.functional.nll_loss(out if isinstance(last, nn.LogSoftmax) else out.log(), y)

    found = recursive_diagonal(model, sc.Task([x], loss=loss), x, levenberg=False)
    torch.testing.assert_close(found["2.weight"], hessian_diagonal(model, lambda m: loss(m, x), "2.weight"))
    logits = sc.Task([x], loss=lambda m, b: nn.functional.cross_entropy(m(b), y))
    for name, value in recursive_diagonal(model[:3], logits, x, levenberg=True).items():
        torch.testing.assert_close(recursive_diagonal(model, sc.Task([x], loss=loss), x, levenberg=True)[name], value)


def test_a_shared_weight_adds_up_over_its_places():
    """One filter of one weight over three pixels, squared error: d2E/dw2 = 2 sum x^2, by hand."""
    model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Identity())
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    work = sc.Task([x], loss=lambda m, b: m(b).square().sum())
    assert float(recursive_diagonal(model, work, x, levenberg=False)["0.weight"]) == 28.0


@pytest.mark.parametrize("levenberg", [True, False])
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d(2, divisor_override=1),
        nn.AvgPool2d(4, ceil_mode=True),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        nn.AvgPool2d((2, 3), stride=(1, 2), padding=(1, 1), ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((4, 5)),
        nn.AvgPool1d(3, stride=2, padding=1, ceil_mode=True),
        nn.AdaptiveAvgPool1d(4),
        nn.AvgPool3d(2, stride=1, padding=1),
        nn.AdaptiveAvgPool3d((2, 1, 3)),
    ],
    ids=str,
)
def test_averages_of_any_windows_are_the_linear_layers_that_they_are(pool, levenberg):
    torch.manual_seed(0)
    axes = int(type(pool).__name__[-2])
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    x, conv = torch.randn(3, 2, *[8] * axes).double()[..., : 8 if axes < 3 else 5], convolution(2, 3, 3).double()
    shape = conv(x).shape[1:]
    basis = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    averages = pool(basis).flatten(1).t().clone()
    plain = nn.Linear(*averages.shape[::-1], bias=False).double()
    plain.weight.data = averages
    head = nn.Linear(len(averages), 2).double()
    pooled = nn.Sequential(conv, nn.Tanh(), pool, nn.Flatten(), head)
    dense = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), plain, head)
    work = sc.Task([x], loss=lambda m, b: m(b).square().sum())
    found, wanted = (recursive_diagonal(m, work, x, levenberg=levenberg)["0.weight"] for m in (pooled, dense))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def test_gauss_newton_rows_give_the_matrix():
    x, _ = data()
    model, names = net(), ["2.weight"]
    ((rows, samples),) = curvature_rows(model, names, sc.Task([x]), "cross_entropy", who="a test")
    states = model[1](model[0](x)).detach()
    p = model(x).detach().softmax(1)
    wanted = sum(
        torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(s, s)) for q, s in zip(p, states, strict=True)
    ) / len(x)
    torch.testing.assert_close(rows.t() @ rows / samples, wanted, rtol=1e-8, atol=1e-10)


def test_diagonals_of_fisher_matrices_have_names():
    for kind in ("empirical", "sampled", "cross_entropy", "squared"):
        assert all((h >= 0).all() for h in diagonal(kind).values())
    with pytest.raises(UnknownName, match="fisher"):
        Obd(diagonal="fisher")
    with pytest.raises(NeedsTask):
        sc.prune(net(), "obd", sparsity=0.5)


def test_on_a_quadratic_the_predicted_rise_is_the_measured_one():
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    x = torch.randn(40, 6).double()
    goal = model(x).detach()
    loss = lambda m, x: (m(x) - goal).square().sum(1).mean() / 2  # noqa: E731
    found = sc.prune(model, "obs", sparsity=0.5, task=sc.Task([x], loss=loss), alpha=1e-12)
    assert found.masks.kept == 7
    settings = found.report.settings
    predicted = sum(stage["predicted"] for stage in settings["stages"])
    assert loss(found.model, x).item() == pytest.approx(predicted, rel=1e-6)
    assert settings["predicted"] == predicted == pytest.approx(settings["measured"], rel=1e-6)
    assert not any("predicted" in note for note in found.report.notes)
    together = sc.prune(model, "obs", sparsity=0.5, task=sc.Task([x]), alpha=1e-12, refresh=100)
    assert together.masks == found.masks


class TestOutcomes:
    """A predicted rise stands beside what is measured, in the loss whose curvature predicted it."""

    def network(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 12)

    def off(self, model, other, x):
        return (other(x) - model(x)).square().sum(1).mean().item() / 2

    def test_steps_too_long_for_the_quadratic_are_said(self):
        model, x = self.network()
        found = sc.prune(model, "obs", sparsity=0.5, each=20, alpha=1e-6, task=sc.Task([x[:40], x[40:]]))
        settings = found.report.settings
        wanted = self.off(model, found.model, x)
        assert settings["measured"] == pytest.approx(wanted, rel=1e-4)
        assert settings["measured"] > 100 * settings["predicted"]
        assert all(stage["measured"] > 0 for stage in settings["stages"])
        (note,) = (note for note in found.report.notes if "predicted" in note)
        assert "half the squared change of the outputs" in note
        assert "Raise alpha=" in note

    @pytest.mark.parametrize("each", [1, 20])
    def test_by_default_they_are_not_too_long(self, each):
        model, x = self.network()
        found = sc.prune(model, "obs", sparsity=0.5, each=each, task=sc.Task([x]))
        plain = sc.prune(model, "magnitude", sparsity=0.5, include_bias=True)
        assert self.off(model, found.model, x) < self.off(model, plain.model, x) / 3
        assert not any("predicted" in note for note in found.report.notes)

    @pytest.mark.parametrize("kind", ["cross_entropy", "sampled", "empirical"])
    def test_other_curvatures_are_of_other_losses(self, kind):
        model, x = self.network()
        y = model(x).argmax(1)
        work = sc.Task([(x, y)], loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]))
        found = sc.prune(model, "obs", sparsity=0.5, each=20, curvature=kind, task=work)
        was, now = (m(x).log_softmax(1) for m in (model, found.model))
        wanted = (
            F.nll_loss(now, y) - F.nll_loss(was, y) if kind == "empirical" else (was.exp() * (was - now)).sum() / 64
        )
        assert found.report.settings["measured"] == pytest.approx(wanted.item(), rel=1e-3)

    def test_nothing_done_is_nothing_measured(self):
        model, x = self.network()
        found = sc.prune(model, "obs", sparsity=0.0, task=sc.Task([{"x": x}]))
        assert found.report.settings["measured"] == found.report.settings["predicted"] == 0
        assert any("Nothing was removed" in note for note in found.report.notes)

    def test_retraining_is_no_part_of_the_step(self):
        model, x = self.network()
        found = sc.methods.Obs(allocation=Global(sparsity=0.5), each=20)(
            model, task=sc.Task([x]), retrain=lambda m, _: [p.data.mul_(2) for p in m.parameters()]
        )
        settings = found.report.settings
        assert settings["measured"] == pytest.approx(sum(stage["measured"] for stage in settings["stages"]))


def test_an_inverse_that_is_made_anew_is_not_brought_down_before(monkeypatch):
    """A rank-one step for each weight, of an inverse that nobody looks at again, took nearly all of the time."""
    steps = []

    def counted(*how):
        steps.append(how)
        remove_(*how)

    monkeypatch.setattr("secateur.solvers.surgeon.remove_", counted)
    sc.prune(net(), "obs", sparsity=0.5, each=4, task=task())
    assert not steps
    sc.prune(net(), "obs", sparsity=0.5, each=4, refresh=2, task=task())  # 25 go, in 4 4|4 4|4 4|1
    assert len(steps) == 4 + 4 + 4


def test_the_surgeon_stops_at_a_floor_and_shows_its_controls():
    x, y = data()
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) + 1e-3 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    right = lambda m: float((m(x).argmax(1) == y).double().mean())  # noqa: E731
    floor = right(model) - 0.1
    pruned = sc.prune(
        model, "obs", task=task(right), floor=floor, curvature="cross_entropy", inverse="recursion", alpha=1e-4
    )
    assert right(pruned.model) >= floor
    assert pruned.masks.sparsity > 0.1
    assert set(pruned.report.controls) == {"magnitude", "random"}
    small = sc.prune(model, "obs", task=task(), most_rise=0.01, curvature="cross_entropy", alpha=1e-4)
    assert sum(stage["predicted"] for stage in small.report.settings["stages"]) <= 0.01


def test_what_the_surgeon_refuses():
    with pytest.raises(BadSparsity, match="single weights"):
        sc.prune(net(), "obs", granularity="filter", sparsity=0.5, task=task())
    with pytest.raises(WrongModel, match="block_fisher"):
        sc.prune(nn.Linear(200, 200), "obs", sparsity=0.5, task=sc.Task([torch.randn(2, 200)]))
    with pytest.raises(BadSparsity, match="how much"):
        sc.prune(net(), "obs", task=task())


@pytest.mark.parametrize("granularity", ["unstructured", "2:4", "row"])
@pytest.mark.parametrize("solver", ["blocks", "joint", "search"])
def test_the_block_fisher_keeps_counts(solver, granularity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    how = {} if granularity == "2:4" else {"sparsity": 0.5, "scope": "layer"}
    found = sc.prune(model, "block_fisher", granularity=granularity, solver=solver, task=task(), **how)
    assert found.masks.kept == 32
    for name, mask in found.masks.items():
        assert not found.model.get_parameter(name)[~mask].any()


def test_stages_end_at_the_same_count_and_tell_how_far_they_are():
    told = []
    how = {"damping": 1e-3, "curvature": "cross_entropy", "stages": 3, "samples": 24}
    found = sc.prune(net(), "block_fisher", sparsity=0.6, task=task(), progress=lambda *a: told.append(a), **how)
    assert found.masks.kept == round(0.4 * 42)
    assert found.report.settings["gradients"] == 24
    done = [at for at, *_ in told]
    assert done == sorted(done)
    assert {total for _, total, *_ in told} == {72}
    assert told[-1] == (72, 72, "stage 3", 0)
