"""Layers whose samples depend on what was pruned before them, and attention, whose parts cannot be hooked."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.examples import plain_attention
from secateur.layerwise.importance import importance_of
from secateur.layerwise.projecting import projected_apart
from secateur.targets import find_targets


def samples(*shape, count=3):
    return [torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


class Experts(nn.Module):
    """Routed by the largest of two numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.experts = nn.Linear(4, 2, bias=False), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.gate.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 0.1, 0, 0]])

    def forward(self, x):
        chosen, out = self.gate(x).argmax(-1), torch.zeros_like(x)
        for at, expert in enumerate(self.experts):
            if (chosen == at).any():
                out[chosen == at] = expert(x[chosen == at])
        return out


@pytest.mark.parametrize("targets", ["own", "dense"])
def test_experts_that_get_no_tokens_any_more_are_pruned_by_magnitude(targets):
    task = sc.Task(samples(64, 4))
    found = sc.prune(Experts(), "layer_obs", sparsity=0.85, scope="layer", task=task, targets=targets)
    assert any("experts.1.weight" in note and "not in the pruned one" in note for note in found.report.notes)
    assert int(found.masks["experts.1.weight"].sum()) == 2
    routed = [note for note in found.report.notes if "targets are their own: experts.0.weight" in note]
    assert len(routed) == (targets == "dense")


@pytest.mark.parametrize("solver", ["magnitude", "random", "activation"])
def test_controls_move_nothing_whatever_the_targets(solver):
    model, task = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), sc.Task(samples(40, 6))
    dense, own = (
        sc.prune(model, "layer_obs", sparsity=0.5, task=task, solver=solver, targets=t).model for t in ("dense", "own")
    )
    for one, other, before in zip(dense.parameters(), own.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one[one != 0], before[one != 0])


class Padded(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), layers)
        self.head = nn.Linear(16, 3)

    def forward(self, x, mask):
        return self.head(self.encoder(x, src_key_padding_mask=mask)[:, 0])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("how", [{}, {"targets": "dense"}, {"tune": 1}])
def test_padded_tokens_of_an_encoder_are_not_packed_away(layers, how):
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[1, 5:] = True
    task = sc.Task([{"x": x, "mask": mask} for x in samples(4, 10, 16)])
    fast = torch.backends.mha.get_fastpath_enabled()
    found = sc.prune(Padded(layers).eval(), "layer_obs", sparsity=0.5, task=task, **how)
    assert found.masks.sparsity == pytest.approx(0.5, abs=1e-3)
    assert torch.backends.mha.get_fastpath_enabled() == fast


class Attending(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **how)
        self.last = nn.Linear(16, 16)

    def forward(self, x):
        other = x[..., : self.attention.kdim]
        return self.last(self.attention(x, other, other, need_weights=False)[0])


@pytest.mark.parametrize("how", [{}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 12, "vdim": 12}])
def test_projections_apart_change_nothing_and_their_gradients_are_those_of_the_rows(how):
    torch.manual_seed(1)
    model, x = Attending(**how).eval(), samples(3, 5, 16, count=1)[0]
    before, held = model(x), dict(model.named_parameters())
    seen = {}

    def see(name, out):
        seen[name] = out.detach().requires_grad_(True)
        return seen[name].clone()

    with plain_attention():
        handles = projected_apart(model.attention, "attention", see)
        out = model(x)
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(out, before, rtol=1e-5, atol=1e-6)
    assert all(parameter is held[name] for name, parameter in model.named_parameters())
    # sum over places of g x^T is the weight's own gradient
    grads = torch.autograd.grad(out.square().sum(), list(seen.values()))
    own = ["in_proj_weight"] if not model.attention.kdim < 16 else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    wanted = torch.autograd.grad(model(x).square().sum(), [getattr(model.attention, name) for name in own])
    other = x[..., : model.attention.kdim]
    found = [g.flatten(0, 1).t() @ y.flatten(0, 1) for g, y in zip(grads, (x, other, other), strict=True)]
    for one, two in zip([torch.cat(found)] if len(own) == 1 else found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_queries_count_for_what_they_do_to_the_network_and_attention_gains_by_shared_budgets():
    def lost(pruned):
        return float(sum((pruned(x) - model(x)).square().sum().detach() for x in batches))

    for seed in range(3):
        torch.manual_seed(seed)
        model = Attending().eval()
        batches = [torch.randn(16, 10, 16, generator=torch.Generator().manual_seed(at)) for at in range(4)]
        task = sc.Task(batches)
        rows = importance_of(model, find_targets(model), task, batches)["attention.in_proj_weight"].view(3, 16).mean(1)
        assert rows[2] > 2 * rows[0]  # the error of a value is handed on, that of a query hardly moves a mean
        errors = [
            lost(sc.prune(model, "layer_obs", sparsity=0.6, task=task, scope=s).model) for s in ("global", "layer")
        ]
        assert errors[0] < errors[1] < lost(sc.prune(model, "magnitude", sparsity=0.6).model)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_exact_solver_keeps_as_many_in_every_row(scope):
    model = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 8))
    task = sc.Task(samples(64, 16))
    found = sc.prune(model, "layer_obs", sparsity=0.6, scope=scope, task=task, solver="exact", granularity="row")
    for mask in found.masks.values():
        kept = mask.sum(1)
        assert int(kept.max() - kept.min()) <= 1


def test_errors_of_some_samples_bound_nothing():
    model, task = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)), sc.Task(samples(400, 12))
    few, all_ = (
        sc.prune(model, "layer_obs", sparsity=0.6, task=task, samples=n, damping=1e-6).report.settings["bound"]
        for n in (3, 400)
    )
    assert few == {}
    assert all_["paper"] >= all_["spectral"] >= all_["measured"]
