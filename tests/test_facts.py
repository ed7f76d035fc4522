"""Every layout goes to [out, in, taps] and back."""

import pytest
import torch
from torch import nn

import oracles
from secateur.facts import LayerFacts
from secateur.layers import facts_of

LAYERS = [
    nn.Linear(6, 4),
    nn.Conv1d(4, 6, 3),
    nn.Conv2d(4, 8, (2, 3), groups=2),
    nn.Conv2d(6, 6, 3, groups=6),
    nn.Conv3d(2, 4, 2),
    nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, 3, groups=2),
    nn.ConvTranspose3d(4, 4, 2, groups=4),
    nn.Embedding(7, 4),
    nn.EmbeddingBag(7, 4),
    nn.Bilinear(3, 4, 5),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_canonical_is_what_the_indices_say_and_undone_exactly(layer):
    facts, weight = facts_of(layer)["weight"], layer.weight.detach()
    layout = "transposed" if facts.out_in_groups else ""
    canonical = facts.canonical(weight)
    taps = weight.shape[2:]
    for index in torch.cartesian_prod(*(torch.arange(size) for size in weight.shape)).tolist():
        o, i, k = oracles.canonical_place(tuple(index), tuple(weight.shape), layout, facts.groups)
        tap = 0
        for size, place in zip(taps, k, strict=True):
            tap = tap * size + place
        assert canonical[o, i, tap] == weight[tuple(index)]
    assert torch.equal(facts.original(canonical, weight), weight)


def test_a_transposed_convolution_computes_its_outputs_from_canonical_rows():
    """The proof by forward pass: zeroing canonical output row 4 silences output channel 4, and nothing else."""
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)
    facts, before = facts_of(layer)["weight"], layer(x := torch.randn(1, 4, 5, 5))
    canonical = facts.canonical(layer.weight.detach()).clone()
    canonical[4] = 0
    layer.weight.data = facts.original(canonical, layer.weight)
    after = layer(x)
    assert torch.equal(after[:, 4], torch.zeros_like(after[:, 4]))
    assert torch.equal(after[:, [0, 1, 2, 3, 5]], before[:, [0, 1, 2, 3, 5]])


@pytest.mark.parametrize("shape", [(), (0,), (5,), (1,)])
@pytest.mark.parametrize("facts", [LayerFacts(), LayerFacts(in_dim=None)])
def test_vectors_of_any_length(shape, facts):
    vector = torch.rand(shape)
    assert facts.canonical(vector).shape == (vector.numel(), 1, 1)
    assert torch.equal(facts.original(facts.canonical(vector), vector), vector)


def test_a_matrix_without_inputs_keeps_its_rows():
    assert LayerFacts(in_dim=None).canonical(torch.zeros(3, 4)).shape == (3, 1, 4)
    assert LayerFacts(in_dim=None).canonical(torch.zeros(3, 0)).shape == (3, 1, 0)
