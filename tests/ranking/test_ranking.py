"""Ranking against sorting everything, on every way an answer can come: small, by bracket, by radix."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur import units as units_module
from secateur.planning import select
from secateur.ranking import bracketing, radix
from secateur.ranking.selection import counts_of_top, counts_with_floors, cut_for, sort_keys
from secateur.units import Table, Units

KINDS = {
    "normal": lambda n, g: torch.randn(n, generator=g),
    "few levels": lambda n, g: (torch.randn(n, generator=g) * 4).round(),
    "mostly zero": lambda n, g: torch.randn(n, generator=g).clamp_min(1).sub(1),
    "bfloat16": lambda n, g: torch.randn(n, generator=g).bfloat16(),
    "float64": lambda n, g: torch.randn(n, generator=g, dtype=torch.float64),
    "integers": lambda n, g: torch.randint(-5, 5, (n,), generator=g),
    "infinite": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.4, -torch.inf, torch.inf),
    "signed zeros": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.4, -0.0, 0.0),
    "denormal": lambda n, g: torch.randn(n, generator=g) * 1e-44,
}


def keep_by_sorting(scores: list[Tensor], keep: int) -> np.ndarray:
    """The oracle: a stable sort of everything."""
    flat = torch.cat([s.double() for s in scores]).numpy()
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[:keep]] = True
    return kept


def flat(masks: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([mask.reshape(-1) for mask in masks.values()]).numpy()


@pytest.fixture(params=["small", "bracket", "radix"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force small inputs through the machinery of large ones."""
    monkeypatch.setattr(units_module, "PIECE", 50)
    if request.param != "small":
        monkeypatch.setattr(bracketing, "_SMALL", 8)
        monkeypatch.setattr(bracketing, "_RUN", 4)
    if request.param == "radix":
        monkeypatch.setattr("secateur.ranking.selection.value_at", lambda tallies, keep: None)
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_counts_and_selection_equal_sorting_everything(kind: str, fraction: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [KINDS[kind](n, generator) for n in (1, 700, 17, 400)]
    units = Units({str(i): Table.of(s) for i, s in enumerate(scores)})
    keep = round(fraction * units.total)
    counts = counts_of_top(units, keep)
    assert sum(counts.values()) == keep
    assert np.array_equal(flat(select(units, counts)), keep_by_sorting(scores, keep))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_of_its_own_selects_as_the_common_cut_does(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    units = Units({name: Table.of(KINDS[kind](500, generator)) for name in "ab"})
    counts = counts_of_top(units, 300)
    alone = select(Units(units.tables), counts)  # without the cuts found on the way
    assert np.array_equal(flat(select(units, counts)), flat(alone))


def test_mixed_precisions_are_compared_exactly() -> None:
    """1 + 2^-30 is larger than 1 in float64 only: rounding it to float32 would make a tie."""
    units = Units({"a": Table.of(torch.ones(2)), "b": Table.of(torch.tensor([1 + 2.0**-30, 0.5], dtype=torch.float64))})
    assert counts_of_top(units, 1) == {"a": 0, "b": 1}


def test_floors_leave_no_stale_cut_behind() -> None:
    units = Units({"large": Table.of(torch.arange(10.0) + 100), "small": Table.of(torch.arange(10.0))})
    counts = counts_with_floors(units, 5, min_kept=2)
    assert counts == {"large": 3, "small": 2}
    assert [int(mask.sum()) for mask in select(units, counts).values()] == [3, 2]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=60), st.data())
def test_radix_finds_the_kth_largest(values: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(values)))
    units = Units({"w": Table.of(torch.tensor(values))})
    assert radix.search(units, ["w"], keep, wide=False) == sorted(values, reverse=True)[keep - 1]
    assert (sort_keys(torch.tensor(values)).argsort(stable=True) == torch.tensor(values).argsort(stable=True)).all()


def test_a_million_weights_take_the_bracket_and_agree_with_topk() -> None:
    """Also where every row has a scale of its own, so that neighbours are alike and a naive sample would mislead."""
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(1000, 1000, generator=generator) * torch.rand(1000, 1, generator=generator)
    units = Units({"w": Table.of(weights.abs().reshape(-1))})
    tallies = bracketing.tally_around(units, ["w"], 100_000, wide=False)
    assert tallies is not None
    value = bracketing.value_at(tallies.values(), 100_000)
    assert value == weights.abs().reshape(-1).topk(100_000).values[-1].item()
    assert tallies["w"].between.size < 100_000
    cut = cut_for(units, 100_000)
    assert (cut.value, cut.ties) == (value, cut.equal)
