"""How compiled models are called: nested inputs and outputs, rows that mind each other, what is no tensor, what cannot be."""

import copy
import pickle
from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten

import secateur as sc
import secateur_engine
from secateur.errors import BadSparsity, UnknownName, UnknownOperation, WrongModel
from secateur_engine import BadInput

pytestmark = pytest.mark.skipif(not secateur_engine.available(), reason="the compiled engine is missing")


class Fn(nn.Module):
    """A function with layers: ``forward`` is ``f(self, ...)``."""

    def __init__(self, f, **layers):
        super().__init__()
        self.f = f
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args, **kwargs):
        return self.f(self, *args, **kwargs)


def check_same(model, *args, given=None, **kwargs):
    """Compiled on ``args`` and called with ``given``, it is the model, tree and numbers."""
    call = args if given is None else given
    with torch.no_grad():
        wanted, expected = tree_flatten(model.eval()(*call))[::-1]
    found, leaves = tree_flatten(sc.compile(model, args, threads=1, **kwargs)(*call))[::-1]
    assert found == wanted
    for one, other in zip(leaves, expected, strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        else:
            assert one == other


def layers(width=8):
    return {name: nn.Linear(width, width) for name in "abcd"}


SUMS = [
    lambda s, x: s.a(x) + s.b(x),
    lambda s, x: s.c(s.a(x).relu()) + s.d(x),
    lambda s, x: s.a(x) + s.b(x) + x,
    lambda s, x: x + (s.a(x) + s.b(x)),
    lambda s, x: (s.a(x) + s.b(x)).relu(),
    lambda s, x: s.a(x) + s.b(x) + s.c(x) + s.d(x),
    lambda s, x: (s.a(x) + s.b(x)) + (s.c(x) + s.d(x)),
    lambda s, x: s.a(x) + s.b(s.a(x)),
    lambda s, x: s.a(x) + (s.b(x) + s.c(x)).relu(),
]


@pytest.mark.parametrize("f", SUMS)
@pytest.mark.parametrize("rows", [1, 32])
def test_products_that_are_added(f, rows):
    check_same(Fn(f, **layers()), torch.randn(rows, 8))
    convolutions = {name: nn.Conv2d(4, 4, k, padding=k // 2) for name, k in zip("abcd", (3, 1, 1, 3), strict=True)}
    check_same(Fn(f, **convolutions), torch.randn(rows % 5 + 1, 4, 9, 9))


@pytest.mark.parametrize(
    "convolution", [nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ConvTranspose2d(6, 6, 3, padding=1)]
)
@pytest.mark.parametrize("rows", [1, 2])
def test_what_is_added_to_a_spread_product_has_zeros_around_it_for_the_next(convolution, rows):
    after = nn.Conv2d(6, 4, 5, padding=2)
    x = torch.randn(rows, 6, 16, 16)
    for act in (nn.ReLU(), nn.Identity()):
        check_same(Fn(lambda s, x: s.after(s.act(s.one(x) + x)), one=convolution, after=after, act=act), x)
        check_same(Fn(lambda s, x: s.after(s.act(s.one(x.relu()) * x)), one=convolution, after=after, act=act), x)


def test_what_is_added_may_lie_closer_than_registers():
    """As in SqueezeBERT: what layer norm made of a table's rows is added to a convolution of its own, 24 positions in all."""

    def forward(s, i):
        y = s.norm(s.table(i) + s.table(i * 0 + 1)).transpose(1, 2)
        return s.two(s.one(y)) + y

    parts = {"one": nn.Conv1d(32, 32, 1), "two": nn.Conv1d(32, 32, 1, groups=4), "norm": nn.LayerNorm(32)}
    check_same(Fn(forward, table=nn.Embedding(9, 32), **parts), torch.randint(0, 9, (2, 12)))


def test_autocast_that_is_off_is_no_hindrance():
    def forward(s, x):
        with torch.autocast("cpu", enabled=False):
            y = s.l(x) * 2
        return y + x

    check_same(Fn(forward, l=nn.Linear(4, 4)), X)


def test_single_places_joined_within_a_larger_tensor():
    """Rotary embeddings of two dimensions: the stride of one place says nothing of how the others lie."""

    def turned(s, x):
        q = s.l(x).view(2, 12, 4, 24).transpose(1, 2)
        return torch.cat((-q[..., 1:2], q[..., :1]), -1), torch.cat((q[..., :1], -q[..., 3:4], q[..., 2:9]), -1)

    check_same(Fn(turned, l=nn.Linear(32, 96)), torch.randn(2, 12, 32))


TABLE = {"e": nn.Embedding(64, 8), "m": nn.Linear(8, 32)}


@pytest.mark.parametrize(
    "f",
    [
        lambda s, i: s.e(i % 64),
        lambda s, i: s.e(i // 2),
        lambda s, i: s.e(i.cumsum(1) % 64),
        lambda s, i: s.e(s.e(i).argmax(-1)),
        lambda s, i: F.linear(s.e(i), s.m(s.e(i)).mean((0, 1)).view(4, 8)).relu() + 1,
        lambda s, i: F.conv1d(s.e(i).transpose(1, 2), s.m(s.e(i)).mean((0, 1)).view(2, 8, 2)).relu(),
        lambda s, i: s.e(i) + i.to(device="cpu", dtype=torch.bool).float()[..., None],
    ],
)
def test_computed_numbers_of_rows_and_weights(f):
    check_same(Fn(f, **TABLE), torch.randint(0, 50, (2, 5)))


X = torch.randn(2, 4)


@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: (x + 1, None, x * 2),
        lambda s, x: {"logits": x + 1, "loss": None},
        lambda s, x: {"a": x, "l": [x + 1, (x * 2, None, 3)]},
        lambda s, x: (x + 1,),
        lambda s, x: [x + 1],
        lambda s, x: {0: x + 1, 1: x},
        lambda s, x: (x, torch.ones(3)),
    ],
)
def test_outputs_are_nested_as_the_model_nests_them(f, tmp_path):
    check_same(Fn(f), X)
    sc.compile(Fn(f), X, threads=1).save(tmp_path / "m.sc")
    assert tree_flatten(secateur_engine.load(tmp_path / "m.sc")(X.numpy()))[1] == tree_flatten(f(None, X))[1]


@pytest.mark.parametrize(
    ("f", "inputs"),
    [
        (lambda s, pair: pair[0] + 2 * pair[1], ([X, X + 1],)),
        (lambda s, d: d["b"] - d["a"], ({"b": X, "a": X + 1},)),
        (lambda s, x, h: s.l(x, h), (torch.randn(2, 5, 4), (torch.randn(1, 2, 6), torch.randn(1, 2, 6)))),
    ],
)
def test_inputs_may_be_nested(f, inputs):
    check_same(Fn(f, l=nn.LSTM(4, 6, batch_first=True)), *inputs)


class Scaled(nn.Module):
    def forward(self, a, b=None, k=2.0):
        return (a if b is None else a + 10 * b) * k


def test_one_tensor_given_twice_is_two_inputs():
    compiled = sc.compile(Scaled(), (X, X), threads=1)
    one, two = torch.ones(2, 4), torch.full((2, 4), 2.0)
    assert torch.equal(compiled(one, two), torch.full((2, 4), 42.0))
    assert torch.equal(compiled(b=one, a=two), torch.full((2, 4), 24.0))
    assert torch.equal(compiled(one, b=two), torch.full((2, 4), 42.0))


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((X,), {"k": 3.0}, "input 'k' is 3.0; the model was compiled with 2.0, and what is no tensor is fixed"),
        ((), {"k": 2.0}, "missing: 'a'"),
        ((X,), {"z": X}, "is called with input 'z'"),
        ((X,), {"a": X}, "input 'a' is given twice"),
        ((None,), {}, "input 'a' is NoneType"),
        ((X.to(torch.complex64),), {}, "complex64, and real numbers are expected"),
        ((X[:0],), {}, "a size of 0"),
        ((X[:, :3],), {}, "compiled for"),
    ],
)
def test_calls_that_do_not_fit_say_why(args, kwargs, says):
    compiled = sc.compile(Scaled(), {"a": X, "k": 2.0}, threads=1)
    with pytest.raises(BadInput, match=says):
        compiled(*args, **kwargs)


def test_numbers_of_other_kinds_are_taken():
    compiled, fixed = sc.compile(nn.Linear(4, 3), X, threads=1), np.ones((2, 4), np.float32)
    fixed.flags.writeable = False
    wanted = compiled(torch.ones(2, 4))
    for x in (torch.ones(2, 4).bfloat16(), torch.ones(2, 4).half(), torch.ones(2, 4).double()):
        torch.testing.assert_close(compiled(x), wanted)
    np.testing.assert_allclose(compiled(fixed), wanted.numpy(), rtol=1e-6)
    ids = sc.compile(Fn(lambda s, i: i + 1), torch.zeros(2, 3, dtype=torch.int64), threads=1)
    with pytest.raises(BadInput, match="float32 has gaps"):
        ids(torch.full((2, 3), 1 << 25))
    with pytest.raises(BadInput, match="whole numbers are expected"):
        ids(torch.full((2, 3), 0.5))


MIXED = [
    lambda s, x: x - x.mean(0, keepdim=True),
    lambda s, x: x.softmax(0),
    lambda s, x: x / x.shape[0],
    lambda s, x: x.cumsum(0),
    lambda s, x: x.flip(0),
    lambda s, x: x @ x.T @ x,
    lambda s, x: x.mean(),
    lambda s, x: (x, s.w.weight * 2),
    lambda s, x: x[0],
    lambda s, x: torch.cat([x, -x]),
    lambda s, x: torch.stack([x, x]),
    lambda s, x: [row * 2 for row in x],
]


@pytest.mark.parametrize("f", MIXED)
def test_rows_that_mind_each_other_are_not_run_apart(f):
    model = Fn(f, w=nn.Linear(4, 4))
    check_same(model, torch.randn(3, 4))
    with pytest.raises(
        BadInput, match="a size of 6 along axis 0: the model was compiled for size 3, and what it gives"
    ):
        sc.compile(model, torch.randn(3, 4), threads=1)(torch.randn(6, 4))
    for rows in (1, 3, 5):  # a program for each size of a range
        check_same(model, torch.randn(2, 4), given=(torch.randn(rows, 4),), batch=(1, 5))
    with pytest.raises(WrongModel, match="cannot be run apart"):
        sc.compile(model, torch.randn(2, 4), batch=(1, 200))


def test_time_on_the_first_axis_is_no_batch():
    check_same(nn.LSTM(4, 6), torch.randn(5, 2, 4))
    with pytest.raises(BadInput, match="compile with batch=10"):
        sc.compile(nn.LSTM(4, 6), torch.randn(5, 2, 4), threads=1)(torch.randn(10, 2, 4))
    with pytest.raises(BadInput, match="does not run on one row and on two"):
        sc.compile(nn.Conv2d(3, 4, 3), torch.randn(3, 8, 8), threads=1)(torch.randn(6, 8, 8))


def test_rows_that_do_not_are_run_as_programs_of_a_few_sizes():
    compiled = sc.compile(nn.Linear(4, 3), X, threads=1, batch=(1, 8))
    assert len(compiled.engine.programs) == 4
    assert compiled(torch.randn(11, 4)).shape == (11, 3)
    shared = Fn(lambda s, x, t: x + t)  # t is the same for every row, and is not cut
    check_same(shared, X, torch.randn(1), given=(torch.randn(3, 4), torch.randn(1)), batch=(1, 4))


class Tokens(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.table, self.qkv = kind, nn.Embedding(20, 8), nn.Linear(8, 24)
        self.conv, self.gru = nn.Conv1d(8, 8, 3), nn.GRU(8, 8, batch_first=True)

    def forward(self, ids):
        x = self.table(ids)
        if self.kind == "conv":
            return self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
        if self.kind == "sum":
            return x.cumsum(1)
        if self.kind == "gru":
            return self.gru(x)[0]
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        if self.kind == "by hand":
            later = torch.ones(x.shape[1], x.shape[1]).tril() == 0
            seen = (q @ k.transpose(-1, -2) / 2).masked_fill(later, -1e9).softmax(-1) @ v
        else:
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.kind == "causal")
        return x + seen.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("values", ["float32", "float16", "int8"])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("kind", ["causal", "both ways", "by hand", "conv", "sum", "gru"])
def test_sessions_are_for_tokens_that_see_the_past_through_caches(kind, length, values):
    torch.manual_seed(0)
    model, ids = Tokens(kind).eval(), torch.randint(2, 20, (1, 12))
    how = {"threads": 1, "cache": 32, "batch": (1, 8), "values": values}
    if kind != "causal":
        with pytest.raises(UnknownOperation, match="only through causal scaled_dot_product_attention"):
            sc.compile(model, ids[:, :length], **how)
        return
    compiled = sc.compile(model, ids[:, :length], **how)
    near = {"float32": 1e-5, "float16": 1e-2, "int8": 0.1}[values]  # of values up to 3
    torch.testing.assert_close(compiled.session()(ids), model(ids).detach(), rtol=1e-4, atol=near)
    with pytest.raises(BadInput, match=r"call what session\(\) gives"):
        compiled(ids[:, :length])


@pytest.mark.parametrize("tokens", [1, 5, 20])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_attention_that_sees_nothing_gives_zeros(tokens, kind):
    sees = torch.rand(1, tokens, tokens, generator=torch.Generator().manual_seed(0)) > 0.4
    sees[0, 0] = sees[0, -1] = False
    mask = sees if kind is torch.bool else torch.zeros(1, tokens, tokens).masked_fill(~sees, float("-inf"))
    check_same(Fn(lambda s, x, m: F.scaled_dot_product_attention(x, x, x, m)), torch.randn(1, tokens, 8), mask)


def test_dropout_that_is_always_on_stays_on():
    compiled = sc.compile(Fn(lambda s, x: F.dropout(x, 0.5)), torch.ones(4, 64), threads=1)
    assert not torch.equal(compiled(torch.ones(4, 64)), compiled(torch.ones(4, 64)))
    check_same(Fn(lambda s, x: F.dropout(x, 0.5, training=s.training)), torch.ones(4, 64))


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"cache": -5}, BadSparsity),
        ({"cache": 2.5}, BadSparsity),
        ({"threads": 0}, BadSparsity),
        ({"batch": 0}, WrongModel),
        ({"batch": "a"}, WrongModel),
        ({"batch": True}, WrongModel),
        ({"batch": (4, 2)}, WrongModel),
        ({"form": "3"}, UnknownName),
        ({"kernels": "avx9"}, UnknownName),
    ],
)
def test_settings_that_make_no_sense_are_named(setting, error):
    ((name, _),) = setting.items()
    with pytest.raises(error, match=f"{name}="):
        sc.compile(nn.Linear(4, 4), X, **setting)


def test_copies_and_pickles():
    compiled = sc.compile(nn.Linear(4, 3), X, threads=1)
    assert torch.equal(copy.deepcopy(compiled)(X), compiled(X))
    with pytest.raises(TypeError, match=r"save\(path\)"):
        pickle.dumps(compiled)


@pytest.mark.parametrize("kernels", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.LayerNorm(1000), (3, 1000)), (nn.LayerNorm(1000), (2, 40, 1000)), (nn.GroupNorm(2, 6), (2, 6, 25, 31))],
)
def test_a_norm_of_nearly_equal_values(norm, shape, kernels):
    """The mean's own rounding would be enlarged by as much as 1 / sqrt(eps), 316 times."""
    if not secateur_engine.available(kernels):
        pytest.skip(f"this machine lacks {kernels}")
    x = 3.3 + 1e-6 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = copy.deepcopy(norm).double()(x.double())
    found = sc.compile(norm.eval(), x, kernels=kernels, threads=1)(x)
    # A sum in float32 alone puts the mean off by so much that this would be 1e-3 to 2e-2.
    assert float((found - exact).abs().max()) <= 3e-4


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 5), (4, 5), (1, 1, 1, 5), (2, 1, 1, 5), (2, 1, 4, 5), (1, 3, 1, 5), (2, 3, 4, 5)]
)
def test_masks_of_every_shape_that_broadcasts(shape, expanded):
    generator = torch.Generator().manual_seed(0)
    sees = (torch.rand(shape, generator=generator) > 0.3).long()
    sees[..., 0] = 1
    q, k = torch.randn(2, 3, 4, 8, generator=generator), torch.randn(2, 3, 5, 8, generator=generator)

    def attend(_, q, k, sees):
        mask = (sees > 0).expand(2, 3, 4, 5) if expanded else sees > 0
        return F.scaled_dot_product_attention(q, k, k, mask)

    compiled = sc.compile(Fn(attend), (q, k, sees), threads=1)
    torch.testing.assert_close(compiled(q, k, sees), attend(None, q, k, sees), rtol=1e-4, atol=1e-5)
    (chosen,) = (step for step in compiled.engine.document["programs"][0]["steps"] if step[0] == "where")
    assert prod(chosen[1][-1][3]) == sees.numel()  # not once for every head and query


@pytest.mark.parametrize("shape", [(1, 8), (5, 8), (2, 3, 8), (2, 4, 5, 6)])
@pytest.mark.parametrize(
    "length",
    [
        lambda x: F.normalize(x, dim=-1),
        lambda x: F.normalize(x * 0, dim=-1),
        lambda x: F.normalize(x, dim=1),
        lambda x: x.norm(),
        lambda x: torch.linalg.vector_norm(x, 1, (0, 1)),
        lambda x: torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True),
    ],
    ids=["last", "zeros", "channels", "all", "sum", "largest"],
)
def test_lengths_of_vectors(length, shape):
    model, x = Fn(lambda s, x: length(2 * x)), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    check_same(model, x)
    assert not sc.compile(model, x, threads=1).report(seconds=0, dense=False).notes
