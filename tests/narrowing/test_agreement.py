"""Whether narrowed and masked agree, where rounding and equal scores decide the order of what comes out."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NarrowingFailed
from secateur.narrowing.agreement import difference, disagreement


def test_difference_by_hand():
    assert difference(torch.tensor([4.0, -2.0]), torch.tensor([4.0, -1.0])) == 0.25
    assert difference(torch.tensor([4.0, torch.inf]), torch.tensor([4.0, torch.inf])) == 0
    assert difference(torch.tensor([3]), torch.tensor([9])) == 0


def test_disagreement_names_the_output_and_the_shapes():
    a, b = torch.ones(2), torch.ones(3)
    assert disagreement([a, a], [a, a * 1.5], 1e-4).startswith("output 1 of the narrowed model differs")
    assert "from [(2,)] to [(3,)]" in disagreement([a], [b], 1e-4)
    assert disagreement([a], [a], 1e-4) == ""


class Ranked(nn.Module):
    """The places of the scores in order; scores of several places are the same but for rounding."""

    def __init__(self):
        super().__init__()
        self.features, self.score = nn.Linear(3, 64), nn.Linear(64, 1)

    def forward(self, x):
        place = (
            torch.cat([self.score(self.features(x)), self.score(self.features(x.flip(0))).flip(0)])
            .squeeze(-1)
            .argsort()
        )
        return place.to(x.dtype), place


def test_where_any_order_is_right_the_layers_decide():
    torch.manual_seed(0)
    net, x = Ranked(), torch.randn(64, 3)
    pruned = sc.prune(net, "random", sparsity=0.5, scope="layer", granularity="channel", example_inputs=x)
    assert pruned.model.features.out_features == 32


def test_places_that_rounding_does_not_change_have_to_agree():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 5)

        def forward(self, x):
            return (self.b(self.a(x)) + len(self.a.weight) * x.sum()).topk(2, 1)

    torch.manual_seed(0)
    with pytest.raises(NarrowingFailed, match="differs from the masked one"):
        sc.prune(Wrong(), sparsity=0.5, scope="layer", granularity="channel", example_inputs=torch.randn(4, 3))


def test_a_wrong_scale_is_found_all_the_same():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = self.b(self.a(x)) * len(self.a.weight)  # len: a number that nobody can see
            return y, y.argmax(1)

    torch.manual_seed(0)
    with pytest.raises(NarrowingFailed, match="differs from the masked one"):
        sc.prune(Wrong(), sparsity=0.5, scope="layer", granularity="channel", example_inputs=torch.randn(4, 3))
