"""Code that writes in place: what is a copy stays as it was, what is the same tensor changes with it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
import secateur_engine
from secateur.errors import UnknownOperation, WrongModel

pytestmark = pytest.mark.skipif(not secateur_engine.available(), reason="the compiled engine is missing")


class Fn(nn.Module):
    """``forward`` is ``f(self, x)``."""

    def __init__(self, f):
        super().__init__()
        self.f, self.a, self.c, self.d = f, nn.Linear(6, 6), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.f(self, x)


def copy_is_written(_, x):
    h = x * 2
    h.clone().add_(1)
    return h


def original_is_written(_, x):
    h = x * 2
    k = h.clone()
    h.add_(1)
    return k


def skip_around_relu(s, x):
    h = s.a(x)
    skip = h.clone()
    return s.a(F.relu_(h)) + skip


def same_under_other_names(s, x):
    h = s.a(x).contiguous()
    p, q = F.dropout(h, 0.5, training=False), h.to(torch.float32)
    p.masked_fill_(x > 0, 0)
    return h, p, q


def contiguous_copies(_, x):
    h = x * 2
    k = h.t().contiguous()
    k.mul_(3)
    return h, k


def operators(s, x):
    h = s.a(x)
    k = h.clone()
    k += 1
    h *= 2
    return h, k, k.clone().zero_()


def chosen_places(s, x):
    h = s.a(x)
    k = h.detach().clone()
    k[k > 0] = 0
    return h, k


def filled(_, x):
    h = x * 1.5
    k, m = h.clone().fill_(3), h.clone()
    m.neg_()
    return h + k, m


def image_skip(s, x):
    h = s.c(x)
    k = h.clone()
    return s.d(F.relu_(h)) + k


def image_clamped(s, x):
    h = s.c(x)
    k = h.clone()
    k.clamp_(min=0)
    return s.d(k) * h, k


VECTORS = [copy_is_written, original_is_written, skip_around_relu, same_under_other_names, contiguous_copies, operators, chosen_places, filled]  # fmt: skip
CASES = [(f, (6, 6)) for f in VECTORS] + [(f, (2, 3, 9, 9)) for f in (image_skip, image_clamped)]


@pytest.mark.parametrize(("f", "shape"), CASES, ids=lambda c: getattr(c, "__name__", ""))
def test_writes_in_place_change_what_they_do_in_torch(f, shape):
    model, x = Fn(f).eval(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x.clone())
    torch.testing.assert_close(sc.compile(model, x, threads=1)(x), expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_compiled_is_refused_in_words():
    with pytest.raises(UnknownOperation, match="Fn"):
        sc.compile(Fn(lambda s, x: x[x[:, 0] > 0] * 2), torch.randn(6, 6))  # as many rows as the numbers say
    with pytest.raises(WrongModel, match="str is no model"):
        sc.compile("model", torch.randn(2, 2))
    with pytest.raises(WrongModel, match="the example is empty"):
        sc.compile(Fn(copy_is_written), torch.randn(0, 6))
