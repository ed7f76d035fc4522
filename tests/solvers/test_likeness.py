"""How alike units are: by hand, and against sampling."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import relative_distance

from secateur.solvers.likeness import Kernel, expected_likeness, expected_products, relative_likeness


def drawn(units, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(units, inputs, generator=generator), torch.randn(units, 1, generator=generator)


class TestRelative:
    def test_by_hand(self):
        """Sizes 5 and 10; cos t = 0.96, so tan(t / 2) = 1/7; biases 1/5 and 4/10, so 0.2 / 0.6 = 1/3."""
        found = relative_likeness(torch.tensor([[3.0, 4.0], [8.0, 6.0]]), torch.tensor([1.0, 4.0]))
        assert found.sizes.tolist() == [5, 10]
        assert found.apart[0, 1] == pytest.approx((1 / 7 + 1 / 3) ** 2)
        assert found.apart[1, 0] == found.apart[0, 1]
        assert found.shares is None

    def test_a_multiple_is_the_same_unit(self):
        filters, biases = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([-0.7, -2.1])
        assert relative_likeness(filters, biases).apart[0, 1] == 0
        assert relative_likeness(filters, biases, homogeneous=False).apart[0, 1] == pytest.approx((0.5 + 0.5) ** 2)

    def test_sums_of_zero(self):
        """Opposite units are as far as can be, units without biases are not, and nothing is NaN."""
        found = relative_likeness(torch.tensor([[1.0, 0], [-1, 0], [1, 0]]), torch.tensor([0.5, 0.5, -0.5])).apart
        assert found[0, 1] > 1e20
        assert found[0, 2] > 1e20
        assert relative_likeness(torch.tensor([[1.0, 0], [1, 0]]), torch.zeros(2)).apart[0, 1] == 0
        assert torch.isfinite(found).all()

    def test_units_without_weights(self):
        """A constant may replace a constant of its sign; what gives nothing may be replaced, and replaces nothing."""
        found = relative_likeness(torch.zeros(3, 2), torch.tensor([2.0, 4.0, 0.0]))
        assert found.sizes.tolist() == [2, 4, 0]
        assert found.apart[0, 1] == 0
        assert found.apart[0, 2] > 1e20
        assert torch.isfinite(found.apart).all()

    @given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 5))
    def test_against_loops(self, seed, units, inputs):
        filters, biases = drawn(units, inputs, seed)
        found = relative_likeness(filters, biases, homogeneous=False).apart
        rows = list(zip(filters.double().tolist(), biases.double().tolist(), strict=True))
        for j in range(units):
            for i in range(units):
                assert found[j, i] == pytest.approx(relative_distance(rows[j], rows[i]) ** 2, rel=1e-6)


class TestExpected:
    @pytest.mark.parametrize("slope", [0.0, 0.25, 1.0, -1.0])
    def test_against_sampling(self, slope):
        filters, biases = (t.double() for t in drawn(4, 6))
        shared = filters.t() @ filters * (6 / filters.square().sum())
        root = torch.linalg.cholesky(0.5 * torch.eye(6, dtype=torch.float64) + 0.5 * shared)
        x = torch.randn(6, 400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        one = torch.randn(1, 400_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        z = filters @ root @ x + biases @ one
        f = torch.where(z > 0, z, slope * z)
        products = expected_products(filters, biases, kernel=Kernel.bent(slope))
        torch.testing.assert_close(products, f @ f.t() / x.shape[1], rtol=0, atol=0.03 * float(products.max()))

        sizes, apart, shares = expected_likeness(filters, biases, kernel=Kernel.bent(slope))
        best = (f @ f.t()) / f.square().sum(1)  # [j, i]: the factor on i that is nearest to j
        errors = f.unsqueeze(1) - best.clamp(min=0).unsqueeze(2) * f.unsqueeze(0)
        expected = errors.square().mean(2) / f.square().mean(1).unsqueeze(1)
        torch.testing.assert_close(apart, expected, rtol=0, atol=0.03)
        torch.testing.assert_close(sizes, f.square().mean(1).sqrt(), rtol=0.02, atol=0)
        assert ((shares == 0) | (shares.square() + apart - 1).abs().lt(1e-12)).all()

    def test_by_hand(self):
        """Two inputs, two units at right angles: S = I, k = 1/2 on the diagonal and 1 / (2 pi) beside it."""
        found = expected_products(torch.eye(2))
        torch.testing.assert_close(found, torch.tensor([[0.5, 1 / (2 * math.pi)], [1 / (2 * math.pi), 0.5]]).double())
        assert expected_likeness(torch.eye(2)).apart[0, 1] == pytest.approx(1 - 1 / math.pi**2)

    def test_multiples_opposites_and_nothing(self):
        filters = torch.tensor([[1.0, 2.0], [3.0, 6.0], [-1.0, -2.0], [0.0, 0.0]])
        sizes, apart, shares = expected_likeness(filters)
        assert apart[0, 1] == apart[1, 0] == 0
        assert sizes[1] / sizes[0] == pytest.approx(3)
        assert shares[0, 2] == pytest.approx(0, abs=1e-12)
        assert shares[0, 3] == 0
        assert torch.isfinite(apart).all()

    def test_without_scaling(self):
        filters = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        found = expected_likeness(filters, homogeneous=False)
        assert found.apart[0, 1] == 0
        assert found.apart[0, 2] > 0
        assert found.sizes.tolist() == [1, 1, 1]
