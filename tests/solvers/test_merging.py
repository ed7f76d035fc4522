"""The order of merging, by hand and against the version that weighs every pair anew; and where to stop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import oracles

from secateur.solvers.likeness import Kernel, expected_likeness, relative_likeness
from secateur.solvers.merging import Merges, cut_off, merge_order, mode_of, saliencies


def drawn(seed, units, inputs, outputs):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(units, size, generator=generator) for size in (inputs, 1, outputs))


class TestMergeOrder:
    def test_by_hand(self):
        """Of two units the one that sends less leaves: s = 25 * (10/21)^2 one way and 200 * (10/21)^2 the other."""
        outgoing = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
        sizes, apart, _ = relative_likeness(torch.tensor([[3.0, 4.0], [8.0, 6.0]]), torch.tensor([1.0, 4.0]))
        every = saliencies(outgoing, sizes, apart)
        assert every[0, 1] == pytest.approx(25 * 100 / 441)
        assert every[1, 0] == pytest.approx(200 * 100 / 441)

        merges = merge_order(outgoing, sizes, apart)
        assert (merges.removed.tolist(), merges.into.tolist(), merges.ratios.tolist()) == ([0], [1], [0.5])
        assert merges.saliencies[0] == pytest.approx(25 * 100 / 441)
        assert merges.total == pytest.approx(225)
        merges.apply_(outgoing, 1)
        assert outgoing.tolist() == [[0, 0], [2.5, 0.5]]

    def test_what_was_taken_over_travels_on(self):
        """0 into 1 into 2, which is three times as large: 2 sends 1 + (2 + 1) / 3."""
        outgoing = torch.tensor([[1.0], [2.0], [1.0]])
        filters = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.3]])
        merges = merge_order(outgoing, *relative_likeness(filters))
        assert (merges.removed.tolist(), merges.into.tolist()) == ([0, 1], [1, 2])
        merges.apply_(outgoing, 2)
        assert outgoing[:2].tolist() == [[0], [0]]
        assert outgoing[2, 0] == pytest.approx(1 + 3 / 9.09**0.5, rel=1e-5)

    def test_only_who_took_over_becomes_dearer(self):
        """1 would leave next, had it not taken over what 0 sent: its energy rose from 1 to 4."""
        filters = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        merges = merge_order(torch.tensor([[1.0], [1.0], [1.5], [9.0]]), *relative_likeness(filters))
        assert list(zip(merges.removed.tolist(), merges.into.tolist(), strict=True))[:2] == [(0, 1), (2, 1)]

    @given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 4), st.integers(1, 3), st.booleans())
    def test_against_the_slow_version(self, seed, units, inputs, outputs, homogeneous):
        filters, biases, outgoing = drawn(seed, units, inputs, outputs)
        merges = merge_order(outgoing, *relative_likeness(filters, biases, homogeneous=homogeneous))
        slow = oracles.merges(filters.double(), biases.double(), outgoing.double(), homogeneous=homogeneous)
        assert merges.removed.tolist() == [j for j, _, _ in slow]
        assert merges.into.tolist() == [i for _, i, _ in slow]
        assert merges.saliencies.tolist() == pytest.approx([cost for _, _, cost in slow], rel=1e-6)

    @given(
        st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5), st.sampled_from([0.0, 0.1, 1.0]), st.booleans()
    )
    def test_multiples_merge_exactly(self, seed, units, copies, slope, relative):
        """k units with some multiples of each: as many as there are copies leave, and the layer computes the same."""
        filters, biases, outgoing = (t.double() for t in drawn(seed, units + copies, 3, 2))
        generator = torch.Generator().manual_seed(seed)
        of = torch.randint(0, units, (copies,), generator=generator)
        factors = torch.rand(copies, 1, generator=generator, dtype=torch.float64) * 3 + 0.1
        filters[units:], biases[units:] = factors * filters[of], factors * biases[of]

        def layer(x):
            z = x @ filters.t() + biases.t()
            return torch.where(z > 0, z, slope * z) @ outgoing

        x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
        before = layer(x)
        likeness = (
            relative_likeness(filters, biases)
            if relative
            else expected_likeness(filters, biases, kernel=Kernel.bent(slope))
        )
        merges = merge_order(outgoing, *likeness)
        assert merges.saliencies[:copies].max() == 0
        assert cut_off(merges, 0.0) >= copies
        merges.apply_(outgoing, copies)
        assert int(outgoing.any(1).sum()) <= units
        torch.testing.assert_close(layer(x), before)

    def test_units_that_do_nothing_leave_first_and_take_nothing_over(self):
        filters, biases, outgoing = drawn(0, 4, 3, 2)
        filters[1], biases[1] = 0, 0
        merges = merge_order(outgoing, *relative_likeness(filters, biases))
        assert merges.removed[0] == 1
        assert torch.isfinite(merges.ratios).all()
        assert 1 not in merges.into.tolist()

    def test_one_unit_or_none(self):
        assert len(merge_order(torch.ones(1, 2), torch.ones(1), torch.zeros(1, 1)).removed) == 0


class TestCutOff:
    def test_the_mode_of_the_bulk(self):
        """Ten of a hundred values lie near 0.75, and one that is a thousand times larger does not matter."""
        values = torch.cat([torch.linspace(0, 1, 89), torch.full((10,), 0.752), torch.tensor([1000.0])])
        assert mode_of(values) == pytest.approx(0.752, abs=0.01)
        assert mode_of(torch.cat([values, torch.tensor([torch.inf])])) == pytest.approx(0.752, abs=0.01)

    def test_degenerate(self):
        assert mode_of(torch.full((7,), 3.0)) == 3
        assert mode_of(torch.tensor([])) == 0

    @pytest.mark.parametrize(("limit", "count"), [(0.0, 1), (0.5, 1), (1.5, 2), (2.5, 3), (9.0, 5)])
    def test_units_leave_while_it_costs_less(self, limit, count):
        """A cheap one behind a dear one stays: the dear one would have to leave first."""
        column = torch.zeros(5)
        costs = torch.tensor([0.0, 1.0, 2.0, 4.0, 3.0]).double()
        merges = Merges(removed=column.long(), into=column.long(), ratios=column, saliencies=costs, total=10.0)
        assert cut_off(merges, limit) == count
        assert merges.relative().tolist() == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
