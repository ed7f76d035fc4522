"""Tables are read in pieces of whole groups; NaN is refused wherever it hides."""

import pytest
import torch

from secateur.allocations.uniform import Uniform
from secateur.errors import BadScores
from secateur.names import allocation_of, granularity_of
from secateur.planning import plan
from secateur.scores import Scores
from secateur.units import PIECE, Table, Units


def test_pieces_hold_whole_groups_and_together_give_everything():
    table = torch.arange(3.0 * (PIECE // 2 + 1)).view(3, -1)
    units = Units({"a": Table.of(table)})
    pieces = list(units.pieces("a"))
    assert [piece.numel() % table.shape[1] for _, piece in pieces] == [0] * len(pieces)
    assert len(pieces) > 1
    assert torch.equal(torch.cat([piece for _, piece in pieces]), table.reshape(-1))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,), (4, 0, 3), (0, 0)])
@pytest.mark.parametrize("scope", ["global", "layer", "erk", "lamp"])
@pytest.mark.parametrize("granularity", ["unstructured", "row", "filter"])
def test_empty_layers_do_no_harm(shape, scope, granularity):
    scores = Scores({"empty": torch.zeros(shape), "full": torch.arange(16.0).view(4, 4)})
    masks = plan(scores, granularity_of(granularity), allocation_of(scope, 0.5))
    assert masks["empty"].shape == shape
    if granularity == "unstructured":
        assert masks["full"].sum() == 8


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("granularity", ["unstructured", "row", "filter", "2:4"])
def test_nan_is_refused_and_named(granularity, place, sparsity):
    values = torch.ones(8, 8)
    values.view(-1)[place] = torch.nan
    allocation = None if granularity == "2:4" else Uniform(sparsity=sparsity)
    with pytest.raises(BadScores, match=r"scores of 'conv\.weight' are NaN"):
        plan(Scores({"fine": torch.ones(4, 4), "conv.weight": values}), granularity_of(granularity), allocation)


def test_nan_behind_the_first_piece_is_refused_even_where_everything_stays():
    values = torch.ones(2 * PIECE)
    values[-1] = torch.nan
    with pytest.raises(BadScores):
        plan(Scores({"w": values}), granularity_of("unstructured"), Uniform(sparsity=0.0))


def test_infinite_scores_rank_at_the_ends():
    values = torch.tensor([1.0, torch.inf, -torch.inf, 2.0, torch.inf])
    for scope, kept in [("global", [0, 1, 0, 1, 1]), ("layer", [0, 1, 0, 1, 1]), ("lamp", [0, 1, 0, 1, 1])]:
        mask = plan(Scores({"w": values}), granularity_of("unstructured"), allocation_of(scope, 0.4))["w"]
        assert mask.tolist() == [bool(k) for k in kept], scope
