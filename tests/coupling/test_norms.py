"""Norms over channels: held by default, so that narrowed equals masked; shrunk where that is asked for, and it is said."""

import copy

import pytest
import torch
from tests.coupling.tricks import inputs, make
from torch import nn

import secateur as sc
from secateur.errors import NothingToPrune, UnknownName
from secateur.profiling.profile import compare


class Stream(nn.Module):
    """A residual stream of 8 through a norm of the caller's choice, with hidden layers of 6."""

    def __init__(self, norm):
        super().__init__()
        self.embed, self.norm, self.up, self.down = nn.Linear(3, 8), norm, nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.down(self.up(self.norm(x)).relu()))


class ByHand(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


NORMS = {
    "layer": lambda: nn.LayerNorm(8),
    "plain layer": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "rms": lambda: nn.RMSNorm(8),
    "by hand": lambda: ByHand(8),
    "one group": lambda: nn.GroupNorm(1, 8),
}


@pytest.mark.parametrize("norm", NORMS)
class TestShrink:
    def test_the_width_leaves(self, norm):
        net, x = Stream(NORMS[norm]()), torch.randn(4, 3)
        assert [g.units for g in sc.couple(net, x).groups()] == [6]
        assert [g.units for g in sc.couple(net, x, norms="shrink").groups()] == [8, 6]
        pruned = sc.prune(net, sparsity=0.5, granularity="channel", scope="layer", norms="shrink", example_inputs=x)
        assert pruned.model.embed.out_features == pruned.model.head.in_features == 4
        assert pruned.model(x).shape == (4, 2)
        pruned.model(x).sum().backward()

    def test_the_receipt_says_by_how_much_outputs_differ(self, norm):
        torch.manual_seed(0)
        net, x = Stream(NORMS[norm]()), torch.randn(4, 3)
        pruned = sc.prune(net, sparsity=0.5, granularity="channel", scope="layer", norms="shrink", example_inputs=x)
        masked = pruned.masks.apply_(copy.deepcopy(net))
        with torch.no_grad():
            apart = float((masked(x) - pruned.model(x)).abs().max() / masked(x).abs().max())
        assert any(f"differ by {apart:.1e}" in note for note in pruned.report.notes)

    def test_files(self, norm, tmp_path):
        net, x = Stream(NORMS[norm]()), torch.randn(4, 3)
        pruned = sc.prune(net, sparsity=0.5, granularity="channel", scope="layer", norms="shrink", example_inputs=x)
        sc.save(pruned, tmp_path / "thin.safetensors")
        again = sc.load(tmp_path / "thin.safetensors", Stream(NORMS[norm]()))
        torch.testing.assert_close(again.model(x), pruned.model(x), rtol=0, atol=0)


def test_what_does_not_touch_a_norm_is_still_compared():
    net, x = Stream(nn.LayerNorm(8)), torch.randn(4, 3)
    coupling = sc.couple(net, x, norms="shrink")
    hidden = next(g for g in coupling.groups() if g.units == 6)
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
    for (name, dim), index in hidden.places.items():
        masks[name].index_fill_(dim, index[:3].flatten(), False)
    structure = coupling.structure_for(sc.Masks(masks))
    assert coupling.inexact(structure) is None
    thin = sc.narrow(net, sc.Masks(masks), x, coupling=coupling)
    torch.testing.assert_close(thin(x), sc.Masks(masks).apply_(net)(x))


def test_whole_heads_are_not_broken_up():
    net, x = make("attention_by_hand"), inputs("attention_by_hand")
    kinds = {g.kind for g in sc.couple(net, x, norms="shrink").groups()}
    assert "head" in kinds


def test_words():
    with pytest.raises(UnknownName, match="norms='melt' is not known: use 'hold' or 'shrink'"):
        sc.couple(nn.Linear(2, 2), torch.ones(1, 2), norms="melt")


def test_a_network_that_only_norms_hold_is_told_what_helps():
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    with pytest.raises(NothingToPrune, match="norms='shrink'"):
        sc.prune(net, sparsity=0.5, granularity="channel", example_inputs=torch.ones(1, 3))
    thin = sc.prune(net, sparsity=0.5, granularity="channel", norms="shrink", example_inputs=torch.ones(1, 3)).model
    assert thin[1].normalized_shape == (4,)
    assert compare(net, thin).after.params < compare(net, thin).before.params


def hooked():
    """The older weight norm, whose hooks leave a weight of the old shape behind."""
    norm = nn.utils.weight_norm
    return nn.Sequential(
        norm(nn.Conv1d(3, 8, 3)), nn.ReLU(), norm(nn.Conv1d(8, 8, 3, groups=8)), nn.ReLU(), norm(nn.Conv1d(8, 2, 1))
    )


def parametrised():
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Conv1d(3, 8, 3)), nn.ReLU(), norm(nn.Conv1d(8, 6, 3)), nn.ReLU(), nn.Conv1d(6, 2, 1))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [hooked, parametrised])
def test_masks_leave_the_directions_of_a_weight_norm_so_that_the_masked_model_computes_numbers(make):
    model, x = make().eval(), torch.randn(2, 3, 12)
    with torch.no_grad():
        model(x)
        pruned = sc.prune(model, sparsity=0.5, granularity="channel", scope="layer", example_inputs=x)
        masked = pruned.masks.apply_(copy.deepcopy(model))(x)
        assert masked.isfinite().all()
        torch.testing.assert_close(pruned.model(x), masked)
    if make is hooked:
        assert (pruned.model[2].groups, pruned.model[2].out_channels) == (4, 4)
